-- one row per run and check, as of the last time the checks ran
create table if not exists check_results (
    run_id varchar not null,
    check_name varchar not null,
    suite varchar not null,
    severity varchar not null,
    n_violations bigint not null,
    passed boolean not null,
    detail varchar,
    checked_at timestamp with time zone not null
);
