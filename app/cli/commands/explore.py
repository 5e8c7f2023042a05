"""`specroof explore`: the explorer on this machine only, under Streamlit."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from perfmodel import ConfigError

ENTRY = Path(__file__).parents[2] / "explorer" / "main.py"
UPLOAD_MB = 1


def explorer_command(*, port: int, browser: bool) -> list[str]:
    """The command that serves the explorer: localhost only, no statistics, small uploads."""
    options = {
        "server.address": "localhost",
        "server.port": port,
        "server.headless": str(not browser).lower(),
        "server.maxUploadSize": UPLOAD_MB,
        "server.fileWatcherType": "none",
        "server.showEmailPrompt": "false",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "global.disableWidgetStateDuplicationWarning": "true",
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "streamlit", "run", str(ENTRY), *flags]


def run_explore(*, port: int, browser: bool) -> None:
    """Become the server; ends when it is interrupted.

    Raises
    ------
    ConfigError
        If streamlit is not installed.
    """
    if importlib.util.find_spec("streamlit") is None:
        raise ConfigError(
            "the explorer needs streamlit; install specroof with its extra: specroof[explorer]"
        )
    command = explorer_command(port=port, browser=browser)
    os.execv(command[0], command)
