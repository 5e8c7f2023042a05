"""A page of the explorer in a browser, and what a user does on it."""

import re
from pathlib import Path
from typing import Any

import pytest

from app.explorer.state import PRESETS, VIEWS

playwright = pytest.importorskip("playwright.sync_api")


class Watched:
    """A page that records console errors and requests to other hosts."""

    def __init__(self, browser: Any, server: str) -> None:
        self.page = browser.new_page()
        self.server = server
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self._request(request.url))

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def _request(self, url: str) -> None:
        allowed = (self.server, self.server.replace("http", "ws", 1), "data:", "blob:", "about:")
        if not url.startswith(allowed):
            self.outside.append(url)

    def open(self, query: str = "") -> None:
        self.page.goto(f"{self.server}/?{query}")
        self.page.get_by_role("radio", name="Decide").or_(
            self.page.get_by_role("button", name="Decide")
        ).first.wait_for(timeout=60_000)
        self.settle()

    def settle(self) -> None:
        """Wait until an element is drawn and the script has finished."""
        idle = "[data-testid=stApp][data-test-script-state=notRunning]"
        self.page.locator(idle).wait_for(timeout=60_000)

    def heading(self, view: str) -> None:
        """Wait until a view is open."""
        self.page.get_by_role("heading", name=VIEWS[view], exact=True).wait_for(timeout=60_000)

    def view(self, name: str, charts: int) -> None:
        """Open a view and wait until its charts are drawn."""
        self.page.locator("[data-testid=stMain]").get_by_text(name, exact=True).first.click()
        self.heading(name)
        self.settle()
        drawn = self.page.locator("[data-testid=stMain] .js-plotly-plot .main-svg .subplot.xy")
        playwright.expect(drawn).to_have_count(charts, timeout=30_000)

    def preset(self, name: str) -> None:
        """Choose a preset whose target differs from the default, and wait until it is applied."""
        self.page.get_by_role("combobox", name="Start from").click()
        self.page.get_by_role("option", name=name).click()
        target = re.compile(f"target={PRESETS[name]['target']}(&|$)")
        playwright.expect(self.page).to_have_url(target, timeout=60_000)
        self.settle()

    def download(self, name: str) -> bytes:
        with self.page.expect_download() as download:
            self.page.locator(f".st-key-{name} button:visible").click()
        return Path(download.value.path()).read_bytes()
