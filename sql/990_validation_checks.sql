-- one row per run and check, as of the last time the checks ran; superseded runs are left out
create view validation_checks as
select
    check_results.run_id,
    runs.model,
    runs.revision,
    runs.collection,
    check_results.suite,
    check_results.check_name as name,
    check_results.severity,
    check_results.n_violations as violations,
    check_results.passed,
    check_results.detail,
    check_results.checked_at
from check_results
left join named_runs as runs on check_results.run_id = runs.run_id
where runs.superseded_by is null;
