"""From a layer's arrays to result tables: the stages of a run, its q-values, its provenance. No orchestrator is needed.

Reads artifacts and writes artifacts, by `store`; computes with `probes`. A run is planned by `planned.plan_run`. The order of
its `stages` is the caller's: `probe_layer` for every layer, `choose_layers`, `probe_best_layer` for each that was chosen,
`finish_run`.
"""
