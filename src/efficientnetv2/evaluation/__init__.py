"""Judging a run: what it reached, on which pictures, and how to get there again."""
