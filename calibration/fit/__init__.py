"""From kernel timings to the curves of the catalog."""
