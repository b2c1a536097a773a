"""From a network and pictures to answers: over batches, or for anything that is a picture."""
