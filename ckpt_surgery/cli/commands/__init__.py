"""One command a file: its options, and a call of the library."""
