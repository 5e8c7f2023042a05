"""`specroof explore`: start the Streamlit explorer, reachable from this machine only."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import option

ENTRY = Path(__file__).parents[2] / "explorer" / "main.py"
UPLOAD_MB = 1


def explore(
    port: Annotated[int, option("PORT", "Port on localhost.", min=1, max=65_535)] = 8501,
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
) -> None:
    """Open the explorer in a browser: inputs as widgets, predictions as charts."""
    if importlib.util.find_spec("streamlit") is None:
        raise ModuleNotFoundError(name="streamlit")  # shown in one line, with the extra to install
    command = explorer_command(port=port, browser=browser)
    os.execv(command[0], command)  # this process becomes the server


def explorer_command(*, port: int, browser: bool) -> list[str]:
    """The command that serves the explorer on localhost, without usage statistics."""
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
    return [sys.executable, "-m", "app.explorer.serve", "run", str(ENTRY), *flags]
