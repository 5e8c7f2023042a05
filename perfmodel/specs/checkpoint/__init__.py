"""Reading a checkpoint: its `config.json`, the fields that are refused, and stored types."""
