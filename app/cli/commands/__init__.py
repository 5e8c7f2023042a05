"""One command per file: its flags and what it does. Heavy imports stand inside functions."""
