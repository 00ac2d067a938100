"""Reports for people and programs; nothing here reads or edits a checkpoint."""
