"""Evaluation of a run: metrics as a report, plots, explanations and comparisons."""
