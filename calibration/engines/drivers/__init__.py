"""What times an engine: vLLM in a process of its own, or a server that runs."""
