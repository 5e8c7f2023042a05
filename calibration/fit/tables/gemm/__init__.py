"""Fits of dense matrix products, in bf16 and in quantised types."""
