"""What was measured, as data: one file format."""
