"""Requests over time: traffic, batching, the simulator."""
