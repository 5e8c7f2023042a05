"""Run and time the engine."""
