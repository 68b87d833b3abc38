-- one row per run and fit that failed or ran into its limit of time or size
-- severity: warning
-- why: a point missing from a curve looks like one that was never asked for
create view check_failed_fits as
select
    run_id,
    'warning' as severity,
    format('{} {} k={} layer {} (fit {})', feature, method, k, coalesce(layer::varchar, 'all'), fit_id) as subject,
    status || coalesce(': ' || message, '') as found,
    'optimal or ok' as expected
from probe_fits
where status in ('failed', 'time_limit', 'size_limit');
