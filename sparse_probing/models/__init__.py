"""Loading of models (hub, folder, GGUF), their hook points, their digests. Never labels, never files of results."""
