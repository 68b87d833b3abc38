"""The DuckDB side: open, load, publish, typed reads, checks."""
