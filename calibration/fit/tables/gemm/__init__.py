"""Fits of GEMMs, in bf16 and in quantised types."""
