"""Evaluation: classical methods, metrics, scores, and their means with intervals, tables, plots and gallery."""
