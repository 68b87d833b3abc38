"""The reference's sixteen experiments and their baselines, each loaded when `probes.registry` calls it."""
