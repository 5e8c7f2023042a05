"""Ranks: process groups, all-reduce over symmetric memory, launching."""
