"""Estimates as plain data: JSON dictionaries and engine configuration files."""
