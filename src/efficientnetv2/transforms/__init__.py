"""Augmentation of a batch on the device that holds it. The random crop is drawn before decoding, in ``data.decode``.

Images are (N, C, H, W) uint8 unless a function says otherwise, and are not changed in place. ``key`` is a counter-based
key of one purpose and ``ids`` (N,) are draw ids: what happens to an image depends on its id alone, not on its batch.
"""
