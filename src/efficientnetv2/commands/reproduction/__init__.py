"""The paper's tables, each with a column of ours beside it: what ``effnetv2 reproduce`` does."""
