"""The command line: a file per command parses, calls one function and prints."""
