"""Solvers of penalised logistic regressions. What they are used for is not their business."""
