"""Flows: order and fan-out only."""
