-- one row per kind and run: the result fragment that the loader merged, by the SHA-256 of its manifest
create table if not exists loaded_fragments (
    kind varchar not null,
    run_id varchar not null,
    manifest_digest varchar not null,
    n_rows bigint not null,
    loaded_at timestamp with time zone not null
);
