-- Where the job of an attempt was submitted: its pool may have another launcher by now.
alter table pgcoord.attempt add column submitted_to text;
comment on column pgcoord.attempt.submitted_to is
    'The launcher that its job was submitted to, which its pool may have no more; null where none was.';
