"""Tasks: read, compute, write, hand on a reference."""
