-- one row per run and feature: how many rows, positives and groups each split holds
create table if not exists features (
    run_id varchar not null,
    feature varchar not null,
    task varchar not null,
    level varchar not null,
    n_train bigint not null,
    n_train_positive bigint not null,
    n_train_groups bigint not null,
    n_train_groups_positive bigint not null,
    n_validation bigint not null,
    n_validation_positive bigint not null,
    n_validation_groups bigint not null,
    n_validation_groups_positive bigint not null,
    n_test bigint not null,
    n_test_positive bigint not null,
    n_test_groups bigint not null,
    n_test_groups_positive bigint not null,
    n_shared_groups bigint not null,
    prevalence double not null
);
