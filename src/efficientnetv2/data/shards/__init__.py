"""Pictures packed into tars, as WebDataset lays them out, with an index beside them."""
