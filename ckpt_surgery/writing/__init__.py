"""Where an edited checkpoint goes, and writing it."""
