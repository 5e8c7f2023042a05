"""A tensor-parallel speculative engine that executes the scenarios that `perfmodel` predicts."""
