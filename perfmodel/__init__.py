"""The arithmetic: from a scenario to step times, rounds, speedups and a recommendation."""
