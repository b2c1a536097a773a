"""From images on disk to batches of uint8: datasets, splits, samplers, decoding, loading and caching."""
