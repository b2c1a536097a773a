"""Progressive learning: image size and regularization as pure functions of the step. No torch."""
