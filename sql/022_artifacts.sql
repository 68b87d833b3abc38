-- one row per artifact of the data folder that a run of this database is, or was made from, as it was last looked at
-- path: below the data folder, and what it is known by; a run's is that of its fragment `runs`.
-- kind: dataset, activations or run. digest: what it is named after; null of a run whose fragments are gone.
-- inputs: what it was made from, by name: the path of an artifact, or the digest or version of what is none (weights, text).
-- state: finished, freed (by gc, on purpose) or missing. What is known of one that was freed stays.
-- n_files, bytes: its files and their sizes by its manifests. seconds: that making it took; null where it was not written down.
-- Of work done side by side they are the sum; artifacts that one pass of a model wrote have equal shares of it.
create table if not exists artifacts (
    path varchar not null,
    kind varchar not null,
    digest varchar,
    inputs map(varchar, varchar) not null,
    state varchar not null,
    n_files bigint,
    bytes bigint,
    seconds double,
    created_at timestamp with time zone
);
