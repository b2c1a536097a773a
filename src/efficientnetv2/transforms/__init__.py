"""Augmentation: a uint8 batch to a float batch, on the device that holds it.

The random crop is not here: it is drawn before decoding, in ``data.decode``. A new operation goes beside its kind,
its place in the order into ``pipeline``; if its strength should grow, ``progressive.Setting`` gets a field for it.
"""
