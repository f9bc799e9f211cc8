select * from (values
    (':board', 'the phases of all features that are not finished'),
    (':features', 'these features, and how far they are'),
    (':slots', 'the slots and what holds each'),
    (':waiting', 'phases that wait, with every reason of each'),
    (':why', 'why one phase is where it is: \set phase 104.2 first'),
    (':timeline', 'attempts of the newest feature, or after \set feature 104'),
    (':events', 'the last twenty things that happened'),
    ('\watch 2', 'the last of these again, every two seconds'),
    ('\df+ pgcoord.*', 'the functions, retry_phase, skip_phase, pause … too')
) as shortcut (type, to_see);
