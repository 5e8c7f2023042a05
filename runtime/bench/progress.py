"""Progress display: a status line on stderr if that is a terminal."""

from __future__ import annotations


def show_status(line: str) -> None:
    """Replace the status line; an empty string clears it."""
    from rich.console import Console

    from runtime.parallel.processes import EXEMPT
    from runtime.parallel.watchdog import HERE

    console = Console(stderr=True)
    if console.is_terminal:
        text = line.ljust(console.width - 1)
        with HERE.waiting(EXEMPT):  # a terminal may be paused, as by Ctrl-S
            console.print(
                text, end="\r", no_wrap=True, overflow="ellipsis", markup=False, highlight=False
            )
