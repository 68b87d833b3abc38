"""Arrays in, frozen results out. Never paths, never tables."""

from sparse_probing.probes.methods import METHODS, Method

__all__ = ["METHODS", "Method"]
