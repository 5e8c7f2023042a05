"""Standard errors of step times and speedups, and the intervals that follow from them."""
