"""A run: what decides it (recipe), what it does at each step (loop), what it leaves (run), how it goes on."""
