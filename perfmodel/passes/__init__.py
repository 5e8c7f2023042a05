"""Seconds and bytes of one forward pass."""
