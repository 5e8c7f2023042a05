"""Progress display: a status line on stderr if that is a terminal."""

from __future__ import annotations


def show_status(line: str) -> None:
    """Replace the status line; an empty string clears it."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        text = line.ljust(console.width - 1)
        console.print(
            text, end="\r", no_wrap=True, overflow="ellipsis", markup=False, highlight=False
        )
