"""The speculative engine: draft, verify, accept, roll back."""
