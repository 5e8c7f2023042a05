"""Kernel timings on a GPU: which cells, how one is timed, the command."""
