-- one row per run and quantity: stored activations that lie further from the real ones than they may
-- severity: error
-- why: half a level is what rounding costs; more means that ranges and levels belong to different data
create view check_quantisation as
with problems as (
    select
        run_id,
        'error' as severity,
        'largest quantisation error' as subject,
        max_quantisation_error as value,
        format('at most {:.6g}', quantisation_error_bound) as expected
    from runs
    -- single precision arithmetic; NaN is above every bound
    where max_quantisation_error > quantisation_error_bound * 1.001 + 1e-9
    union all
    select
        run_id,
        'error' as severity,
        'largest quantisation error' as subject,
        max_quantisation_error as value,
        'an error and its bound, for uint8' as expected
    from runs
    where storage_dtype = 'uint8' and (max_quantisation_error is null or quantisation_error_bound is null)
    union all
    select
        run_id,
        'warning' as severity,
        'largest share of a neuron''s activations outside its range' as subject,
        max_clipped_fraction as value,
        'at most 0.05' as expected
    from runs
    where max_clipped_fraction > 0.05
)

select
    run_id,
    severity,
    subject,
    coalesce(format('{:.6g}', value), 'nothing') as found,
    expected
from problems;
