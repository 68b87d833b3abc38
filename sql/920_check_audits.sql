-- one row per run and certificate that another solver contradicts
-- severity: error
-- why: a proof is only as good as the program that made it; the integer model's optimum must lie between bound and objective
-- audit_gap is (objective - optimum) / |objective|; 1e-5 covers the tolerances of both searches.
create view check_audits as
select
    run_id,
    'error' as severity,
    format('{} {} k={} layer {} (fit {})', feature, method, k, coalesce(layer::varchar, 'all'), fit_id) as subject,
    format('audit_gap {:.2e} by {}', audit_gap, coalesce(audited_by, 'nobody')) as found,
    format('from 0 to the gap, {:.2e}, to 1e-05', gap) as expected
from probe_fits
where audit_gap is not null and not coalesce(audit_gap between -1e-5 and gap + 1e-5, false);
