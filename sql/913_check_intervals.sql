-- one row per run, subject and interval that is inverted, of width zero, half missing, or without its score
-- severity: error
-- why: an interval is read as where the score lies; one of width zero claims to know it
create view check_intervals as
with intervals as (
    select
        run_id,
        format('{} layer {} neuron {}: validation mcc', feature, layer, neuron) as subject,
        validation_mcc as score,
        validation_mcc_low as low,
        validation_mcc_high as high
    from neuron_scores
    where validation_mcc_low is not null or validation_mcc_high is not null
    union all
    select
        run_id,
        format('{} layer {} neuron {}: test mcc', feature, layer, neuron) as subject,
        test_mcc as score,
        test_mcc_low as low,
        test_mcc_high as high
    from neuron_scores
    where test_mcc_low is not null or test_mcc_high is not null
    union all
    select
        run_id,
        format('{} {} k={} (fit {}): test mcc', feature, method, k, fit_id) as subject,
        test_mcc as score,
        test_mcc_low as low,
        test_mcc_high as high
    from probe_fits
    where test_mcc_low is not null or test_mcc_high is not null
    union all
    select
        run_id,
        format('{} {} k={} (fit {}): test r2', feature, method, k, fit_id) as subject,
        test_r2 as score,
        test_r2_low as low,
        test_r2_high as high
    from probe_fits
    where test_r2_low is not null or test_r2_high is not null
),

judged as (
    select
        run_id,
        subject,
        score,
        low,
        high,
        coalesce(isnan(low) or isnan(high) or low >= high, true) as is_broken,
        not coalesce(score between low - 1e-6 and high + 1e-6, false) as is_missed
    from intervals
)

select
    run_id,
    'error' as severity,
    subject,
    format(
        '{} in [{}, {}]',
        coalesce(score::varchar, 'nothing'), coalesce(low::varchar, 'nothing'), coalesce(high::varchar, 'nothing')
    ) as found,
    'low < high, low <= score <= high' as expected
from judged
where is_broken or is_missed;
