"""What makes a short command short: each trick in a file of its own, with what it brings."""
