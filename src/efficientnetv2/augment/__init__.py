"""Augmentation: a uint8 batch to a float batch, on the device that holds it."""
