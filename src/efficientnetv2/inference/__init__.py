"""Prediction and embedding, the linear probe, active learning, and the `Predictor`."""
