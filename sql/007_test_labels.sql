-- one row per run and feature: what its test rows are judged by
-- truth: a bit a row (the first in the lowest bit of the first byte), or a float32 a row where targets are numbers.
-- group_code: an int32 a row, the same number for rows of the same group.
create table if not exists test_labels (
    run_id varchar not null,
    feature varchar not null,
    n_rows bigint not null,
    truth blob not null,
    group_code blob not null
);
