"""Weights of others: timm, torchvision, Keras, the authors' checkpoints; in both directions."""
