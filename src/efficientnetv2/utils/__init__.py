"""What every floor above may use: errors, counted randomness, preprocessing, files."""
