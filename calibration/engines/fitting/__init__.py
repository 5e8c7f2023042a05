"""Fit the terms of an engine profile, and its standard errors."""
