-- one row per run, feature and baseline that the best sparse probe is not shown to beat on test
-- severity: warning
-- why: if shuffled labels, a rotation, the token alone or the prevalence do as well, the neurons explain nothing
-- The dense probe is a ceiling, not a baseline, and is left out.
create view check_baselines as
with scores as (
    select
        run_id,
        feature,
        variant,
        metric,
        coalesce(test_mcc, test_r2) as test_score,
        difference_low,
        difference_high
    from baselines
)

select
    baseline.run_id,
    'warning' as severity,
    format('{}: {}', baseline.feature, baseline.variant) as subject,
    format(
        'baseline {:.4f}, best sparse probe {:.4f} (test {}), difference in [{}, {}]',
        baseline.test_score, probe.test_score, probe.metric,
        coalesce(round(baseline.difference_low, 4)::varchar, 'nothing'),
        coalesce(round(baseline.difference_high, 4)::varchar, 'nothing')
    ) as found,
    'a difference above 0' as expected
from scores as baseline
inner join scores as probe
    on
        baseline.run_id = probe.run_id
        and baseline.feature = probe.feature
        and baseline.metric = probe.metric
        and probe.variant = 'real'
where
    baseline.variant not in ('real', 'dense')
    and coalesce(baseline.difference_low <= 0, baseline.test_score >= probe.test_score);
