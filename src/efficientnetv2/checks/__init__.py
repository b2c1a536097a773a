"""What is the matter with a set of pictures, found before anything is trained on it."""
