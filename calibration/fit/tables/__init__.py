"""Fits to public kernel tables."""
