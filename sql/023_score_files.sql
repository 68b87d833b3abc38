-- one row per run whose neuron_scores are read from its fragment; empty while all scores are in this file
-- Past a number of rows table neuron_scores becomes a view: shortlisted rows are in table kept_scores, the others in the files
-- of pattern path.
create table if not exists score_files (
    run_id varchar not null,
    path varchar not null
);
