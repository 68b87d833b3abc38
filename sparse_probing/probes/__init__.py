"""Arrays in, frozen results out. Never paths, never tables."""

from sparse_probing.probes.registry import METHODS, Method

__all__ = ["METHODS", "Method"]
