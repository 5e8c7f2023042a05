"""Predicted against measured steps: draw cases, run them, report the errors."""
