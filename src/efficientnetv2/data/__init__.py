"""From pictures on disk to uint8 batches: what there is, how it is split, drawn, decoded, delivered."""
