"""Images in tars in the layout of WebDataset, with an index."""
