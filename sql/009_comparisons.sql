-- one row per run and pair of neurons or fits of pairs_to_compare: an interval of the difference of test scores
-- probe_id's score less other_probe_id's, on the same test rows, by the same draws; probe_id is better where it lies above 0.
create table if not exists comparisons (
    run_id varchar not null,
    feature varchar not null,
    metric varchar not null,
    probe_id varchar not null,
    other_run_id varchar not null,
    other_probe_id varchar not null,
    difference_low double not null,
    difference_high double not null
);
