-- one row per collection and metric: the score from which a neuron counts as one of interest
-- Edit freely. A neuron must reach every threshold of its collection; '*' stands for collections without a row of their own.
-- Metrics: validation_mcc, validation_f1, validation_precision, validation_recall, validation_balanced_accuracy,
-- validation_roc_auc, validation_average_precision. The test split is reported and never selected on.
create table if not exists interest_thresholds (
    collection varchar not null,
    metric varchar not null,
    threshold double not null,
    primary key (collection, metric)
);

insert into interest_thresholds (collection, metric, threshold)
select seeds.collection, seeds.metric, seeds.threshold
from (
    values
        ('natural_lang_id', 'validation_mcc', 1.0),
        ('ewt', 'validation_mcc', 0.95),
        ('compound_words', 'validation_mcc', 0.95),
        ('distribution_id', 'validation_mcc', 0.95),
        ('programming_lang_id', 'validation_mcc', 0.90),
        ('latex', 'validation_mcc', 0.85),
        ('text_features', 'validation_mcc', 0.85),
        ('*', 'validation_mcc', 0.90)
) as seeds (collection, metric, threshold)
where not exists (select 1 from interest_thresholds);
