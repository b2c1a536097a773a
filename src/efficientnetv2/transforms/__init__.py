"""Augmentation of a batch on the device that holds it; the random crop is drawn before decoding, in ``data.decode``.

Images are (N, C, H, W) uint8. What happens to an image depends on its draw id (``ids``) and the key of one purpose.
"""
