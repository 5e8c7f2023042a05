"""Commands that run and time the engine."""
