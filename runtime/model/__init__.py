"""The decoder: layers, weights of one rank, prompts."""
