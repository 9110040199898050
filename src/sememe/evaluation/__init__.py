"""Measuring what was generated: the oracle, metrics, intervals and tables."""
