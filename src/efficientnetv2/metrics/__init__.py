"""Metrics of classifiers with confidence intervals and tests."""
