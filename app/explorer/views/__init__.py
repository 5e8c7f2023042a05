"""The explorer's views, one per file."""
