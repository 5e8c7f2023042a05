"""Fits to kernels that were timed on the local GPU."""
