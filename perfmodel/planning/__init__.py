"""Many rounds compared: sweeps, the search, the recommendation."""
