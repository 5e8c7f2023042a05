"""What is described: GPU, model, workload, draft, engine; frozen, without file access."""
