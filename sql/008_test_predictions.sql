-- one row per run, feature and shortlisted neuron or fit: what it predicts on the feature's test rows
-- probe_id: the fit_id, or layer/neuron. truth: what it was judged by where that is not the feature's own (shuffled labels).
create table if not exists test_predictions (
    run_id varchar not null,
    feature varchar not null,
    probe_id varchar not null,
    predicted blob not null,
    truth blob
);
