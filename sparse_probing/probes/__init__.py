"""Probes of arrays: functions take arrays and return frozen results. No file is read or written here."""

from sparse_probing.probes.registry import METHODS, Method

__all__ = ["METHODS", "Method"]
