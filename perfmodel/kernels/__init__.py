"""Seconds of one kernel on one GPU: dense products, attention, collectives."""
