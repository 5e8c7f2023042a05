"""Fused operations: one interface, in plain torch and in Triton."""
