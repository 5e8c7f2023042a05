"""Draft policies: which cached tokens a draft reads, and standalone draft models."""
