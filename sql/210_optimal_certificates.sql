-- one row per run and fit of a solver that bounds its objective: what it proved, and how long that took
-- It holds over n_candidates of the layer's n_neurons, at this ridge (λ in λ/2 ‖β‖²) on activations in units of
-- unit_standard_deviations standard deviations; at other scales the ridge weighs otherwise.
-- audited_by is the solver that searched anew, null where none did (message says why, if one was to); audit_gap is how far its
-- optimum lies below the objective, relative to it, and is at most gap if both are right.
create view optimal_certificates as
select
    probe_fits.run_id,
    runs.model,
    runs.revision,
    runs.collection,
    probe_fits.feature,
    probe_fits.layer,
    probe_fits.method,
    probe_fits.variant,
    probe_fits.k,
    probe_fits.step,
    probe_fits.n_candidates,
    probe_fits.n_neurons,
    probe_fits.ridge,
    probe_fits.unit_standard_deviations,
    probe_fits.status,
    probe_fits.status = 'optimal' as certified,
    probe_fits.objective,
    probe_fits.bound,
    probe_fits.gap,
    probe_fits.n_cuts,
    probe_fits.audited_by,
    probe_fits.audit_gap,
    probe_fits.fit_seconds,
    probe_fits.validation_mcc,
    probe_fits.test_mcc,
    probe_fits.test_mcc_low,
    probe_fits.test_mcc_high,
    probe_fits.message
from probe_fits
inner join named_runs as runs on probe_fits.run_id = runs.run_id
where runs.superseded_by is null and (probe_fits.bound is not null or probe_fits.gap is not null);
