"""One file per verb of the command line: what each takes, and which floors it wires together."""
