"""Which neurons of a language model respond to a feature, and how sure are we?

The library behind the flows. It never imports Prefect, and importing it loads neither torch, duckdb, gurobipy nor
great_expectations: reach for the subpackage that does the work.
"""

__version__ = "0.1.0"
