"""Checks of a dataset before training: duplicates, leakage, label errors and image statistics."""
