-- one row per run, fit and neuron of its support (a rotated direction for rotations)
create table if not exists probe_supports (
    run_id varchar not null,
    fit_id varchar not null,
    layer integer,
    neuron integer not null,
    position_in_support integer not null,
    coef double not null
);
