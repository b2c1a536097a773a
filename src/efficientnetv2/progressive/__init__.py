"""Progressive learning: schedules of image size and regularization, as data."""
