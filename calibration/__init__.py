"""Measures, fits, compares predicted with measured, and publishes the error."""
