"""Atomic Parquet, manifests, and matrices read back from them. Nothing about features or models."""
