"""The command line: parses, calls `ops`, and hands the report to `render`."""
