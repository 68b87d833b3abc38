-- one row per run: a digest of the question that it answers, whatever version of this software answered it
-- Model, weights, precision, collection, hook, extraction and probing, with today's defaults for what a run's own version had
-- no name for. Written anew at each load.
create table if not exists run_identities (
    run_id varchar not null,
    identity varchar not null
);
