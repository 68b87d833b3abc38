-- one row per run and feature with a group (document, pair, person) on more than one side of the split
-- severity: error
-- why: a probe that has seen half a document is tested on its memory; the reference split shares groups by design (warning)
create view check_shared_groups as
select
    features.run_id,
    case when runs.split_mode = 'reference' then 'warning' else 'error' end as severity,
    features.feature as subject,
    format('{} groups in more than one split', features.n_shared_groups) as found,
    '0' as expected
from features
left join runs on features.run_id = runs.run_id
where features.n_shared_groups > 0;
