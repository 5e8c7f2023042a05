"""One command per file. Heavy imports are inside functions, so that `--help` is instant."""
