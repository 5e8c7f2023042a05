"""Tokens per round: acceptance rates, and their curve over KV budget and context."""
