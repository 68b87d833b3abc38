-- one row per run, feature, method, variant, ranking, step and k: the layer that validation chose, with its test numbers
-- Fits are judged by mcc, or by r2 for regression (column metric); the other is null.
-- The dense columns repeat the feature's dense probe for comparison.
create view sparsity_curves as
with placed as (
    select
        run_id,
        feature,
        method,
        variant,
        ranking,
        step,
        k,
        n_candidates,
        layer,
        fit_id,
        status,
        converged,
        is_dense,
        metric,
        train_mcc,
        validation_mcc,
        test_mcc,
        test_mcc_low,
        test_mcc_high,
        train_r2,
        validation_r2,
        test_r2,
        test_r2_low,
        test_r2_high,
        test_f1,
        test_roc_auc,
        test_average_precision,
        count(*) over (partition by run_id, feature, method, variant, ranking, step, k) as n_layers,
        row_number() over (
            partition by run_id, feature, method, variant, ranking, step, k
            order by
                coalesce(validation_mcc, validation_r2) desc nulls last,
                coalesce(train_mcc, train_r2) desc nulls last,
                layer,
                fit_id
        ) as place
    from scored_fits
),

dense as (
    select
        fits.run_id,
        fits.feature,
        fits.layer,
        fits.validation_mcc,
        fits.validation_r2,
        fits.test_mcc,
        fits.test_r2
    from ordered_fits
    inner join scored_fits as fits on ordered_fits.run_id = fits.run_id and ordered_fits.fit_id = fits.fit_id
    where ordered_fits.variant = 'dense' and ordered_fits.place = 1
)

select
    placed.run_id,
    probed_features.model,
    probed_features.revision,
    probed_features.collection,
    placed.feature,
    probed_features.hook,
    placed.method,
    placed.variant,
    placed.ranking,
    placed.step,
    placed.k,
    placed.n_candidates,
    placed.layer,
    placed.n_layers,
    placed.fit_id,
    placed.status,
    placed.converged,
    placed.is_dense,
    placed.metric,
    placed.train_mcc,
    placed.validation_mcc,
    placed.test_mcc,
    placed.test_mcc_low,
    placed.test_mcc_high,
    placed.train_r2,
    placed.validation_r2,
    placed.test_r2,
    placed.test_r2_low,
    placed.test_r2_high,
    placed.test_f1,
    placed.test_roc_auc,
    placed.test_average_precision,
    dense.layer as dense_layer,
    dense.validation_mcc as dense_validation_mcc,
    dense.validation_r2 as dense_validation_r2,
    dense.test_mcc as dense_test_mcc,
    dense.test_r2 as dense_test_r2
from placed
inner join probed_features
    on placed.run_id = probed_features.run_id and placed.feature = probed_features.feature
left join dense
    on placed.run_id = dense.run_id and placed.feature = dense.feature
where placed.place = 1;
