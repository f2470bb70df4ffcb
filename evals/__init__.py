"""Whether a model is good: metrics, statistics, gates, report."""
