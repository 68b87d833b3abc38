"""From a layer's arrays to result tables: the stages of a run, its q-values, its provenance. No orchestrator is needed.

Artifacts are read and written with `store`, results computed with `probes`. `planned.plan_run` plans a run. The caller calls
its `stages` in this order: `probe_layer` for every layer, `choose_layers`, `probe_best_layer` for each chosen layer,
`finish_run`.
"""
