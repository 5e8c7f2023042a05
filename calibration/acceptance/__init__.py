"""Acceptance measured on text, fitted to curves, compared with counted runs."""
