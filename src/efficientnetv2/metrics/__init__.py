"""Figures of a classifier: how often it is right, how sure of itself, how far chance reaches."""
