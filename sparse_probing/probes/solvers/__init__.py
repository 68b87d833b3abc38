"""Solvers of penalised logistic regressions. The methods that use them are in `experiments`."""
