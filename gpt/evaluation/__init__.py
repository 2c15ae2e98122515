"""Metrics, information theory, baselines, and samples checked by a grammar."""
