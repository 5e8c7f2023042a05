"""Run Streamlit's command line, compute the first page early, and end with the output's reader.

While the browser loads Streamlit's page, the server would idle. Instead a thread imports what the
first page needs, and computes its recommendation.

Streamlit prints when it stops. If stdout is a closed pipe, as after `specroof explore | head`, that
fails in its signal handler, and neither Ctrl-C nor SIGTERM would end it.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

OUTPUT_CLOSED = 141  # as after SIGPIPE
MOST_WAIT_S = 30.0


def _watch(output: int) -> None:
    poll = select.poll()
    poll.register(output, 0)  # errors are always reported
    poll.poll()
    os._exit(OUTPUT_CLOSED)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


def _warm_up() -> None:
    try:
        _compute_first_page()
    finally:
        gc.enable()


def _compute_first_page() -> None:
    from streamlit.config import get_option

    until = time.monotonic() + MOST_WAIT_S
    while time.monotonic() < until and not _listens(int(get_option("server.port"))):
        time.sleep(0.02)  # the port comes first
    import app.explorer.inputs.sidebar
    import app.explorer.tray  # noqa: F401
    from app.explorer.state import DEFAULTS, stated_values
    from app.explorer.views.decide import recommended

    recommended(DEFAULTS, stated_values(DEFAULTS))
    import pandas  # noqa: F401  # of the tables below the verdict, which would delay it


def streamlit_command() -> Callable[..., Any]:
    """Streamlit's command line, imported as if there were no Plotly: `drawing` imports it later."""
    sys.modules["plotly"] = None  # type: ignore[assignment]
    try:
        from streamlit.web.cli import main as streamlit
    finally:
        del sys.modules["plotly"]
    return streamlit


def main() -> None:
    """Entry point of `python -m app.explorer.serve`, with the arguments of `streamlit`."""
    gc.disable()  # until the first page is computed: what is imported stays
    streamlit = streamlit_command()
    for output in (1, 2):
        if stat.S_ISFIFO(os.fstat(output).st_mode):
            threading.Thread(target=_watch, args=(output,), daemon=True).start()
    threading.Thread(target=_warm_up, daemon=True).start()
    streamlit(prog_name="streamlit")


if __name__ == "__main__":
    main()
