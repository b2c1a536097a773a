"""Networks as PyTorch modules: made from tables, regularized in place, saved to model files."""
