"""Measurements against what a user would otherwise use; run by `make bench`."""
