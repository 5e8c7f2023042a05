"""Run Streamlit's command line, and end the server when the reader of its output is gone.

Streamlit prints when it stops. If stdout is a closed pipe, as after `specroof explore | head`, that
fails in its signal handler, and neither Ctrl-C nor SIGTERM would end it.
"""

from __future__ import annotations

import os
import select
import stat
import threading

OUTPUT_CLOSED = 141  # as after SIGPIPE


def _watch(output: int) -> None:
    poll = select.poll()
    poll.register(output, 0)  # errors are always reported
    poll.poll()
    os._exit(OUTPUT_CLOSED)


def main() -> None:
    """Entry point of `python -m app.explorer.serve`, with the arguments of `streamlit`."""
    from streamlit.web.cli import main as streamlit

    for output in (1, 2):
        if stat.S_ISFIFO(os.fstat(output).st_mode):
            threading.Thread(target=_watch, args=(output,), daemon=True).start()
    streamlit(prog_name="streamlit")


if __name__ == "__main__":
    main()
