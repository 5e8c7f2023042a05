"""One command, or group of commands, per file or folder.

Heavy imports are inside functions, so that `--help` is instant.
"""
