-- Which database this is, also where it is a copy of another.
alter table pgcoord.control add column place text;
comment on column pgcoord.control.place is
    'Four characters that tell this database from a copy of it, which has the same installation; the last of the folder of each run. Set with each lead.';
