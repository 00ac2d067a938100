"""What a checkpoint holds, described; choosing within it; which of its bytes are used."""
