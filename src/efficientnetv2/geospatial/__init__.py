"""Maps from rasters, and the ground area of pixels."""
