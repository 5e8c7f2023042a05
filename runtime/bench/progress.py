"""Progress of long work: one line on a terminal's stderr, nothing elsewhere."""

from __future__ import annotations


def show_status(line: str) -> None:
    """Replace the status line; an empty one clears it."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        text = line.ljust(console.width - 1)
        console.print(
            text, end="\r", no_wrap=True, overflow="ellipsis", markup=False, highlight=False
        )
