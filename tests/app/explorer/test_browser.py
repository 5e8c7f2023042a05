"""The explorer in a headless Chromium: data in every view, no other host, and shareable URLs."""

import csv
import io
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

pytest.importorskip("streamlit")
playwright = pytest.importorskip("playwright.sync_api")

from explorer_views import CHARTS  # noqa: E402
from watched_page import Watched  # noqa: E402

from app.cli.commands.explore import explorer_command  # noqa: E402
from app.cli.main import run  # noqa: E402

ROOT = Path(__file__).parents[3]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# The drawing is as wide as its place on the page in ten frames of the screen one after another.
FINAL_WIDTH = """() => {
    const plot = document.querySelector('.js-plotly-plot');
    const width = plot?._fullLayout?.width;
    const fits = width && Math.abs(width - plot.parentElement.clientWidth) < 2;
    window.framesThatFit = fits && width === window.lastWidth ? (window.framesThatFit ?? 0) + 1 : 0;
    window.lastWidth = width;
    return window.framesThatFit >= 10;
}"""
PRESET = "llama-2-7b-32k-tinyllama"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of a running explorer."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        explorer_command(port=port, browser=False),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address, deadline = f"http://localhost:{port}", time.monotonic() + 60
        while not answers(f"{address}/_stcore/health"):
            assert process.poll() is None and time.monotonic() < deadline, "no server"
            time.sleep(0.05)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser profile, so that only the first page loads the front end."""
    with playwright.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened.new_context(viewport={"width": 1280, "height": 900}, has_touch=True)
        opened.close()


@pytest.fixture
def watched(browser: Any, server: str) -> Iterator[Watched]:
    page = Watched(browser, server)
    yield page
    page.page.close()


def test_every_view_a_second_tab_a_reload_and_back_show_one_plan(
    watched: Watched, browser: Any, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recommended plan of a preset, with the numbers of the command line, and no error."""
    watched.open()
    watched.preset(PRESET)
    watched.page.locator(".st-key-use_0 button:visible").last.click()
    watched.page.get_by_role("button", name="in use").wait_for()
    for name in ("Decide", "Map", "Frontier", "Check", "Why"):
        watched.view(name, CHARTS[name])
        assert watched.page.locator("[data-testid=stException]").count() == 0, name
        assert watched.page.locator("[data-testid=stAlertContentError]").count() == 0, name
        marks = watched.page.evaluate(
            "[...document.querySelectorAll('.js-plotly-plot')].map(p => p.data.length)"
        )
        assert len(marks) == CHARTS[name] and min(marks, default=1) > 0, name
    shown = json.loads(watched.download("prediction_json"))
    figure = watched.page.locator("[data-testid=stMetric]", has_text="Speedup, decoding alone")
    assert f"{shown['speedup']:.2f}x" in figure.inner_text()
    watched.page.get_by_text("Scenario file and command").click()
    command = watched.page.locator("[data-testid=stSidebar] [data-testid=stCode] code").inner_text()
    assert run([*command.split()[1:], "--json"]) == 0
    assert shown == json.loads(capsys.readouterr().out)
    other = Watched(browser, server)
    other.open(watched.page.url.partition("?")[2])
    assert json.loads(other.download("prediction_json")) == shown
    other.page.close()
    _reload_change_and_go_back(watched, shown)
    assert watched.errors == []
    assert watched.outside == []


def _reload_change_and_go_back(watched: Watched, shown: dict[str, Any]) -> None:
    watched.page.reload()
    watched.heading("Why")
    watched.settle()
    assert json.loads(watched.download("prediction_json")) == shown
    batch = watched.page.get_by_label("Batch (sequences)")
    batch.fill("9")
    batch.press("Enter")
    playwright.expect(watched.page).to_have_url(re.compile("batch=9"))
    watched.settle()
    watched.page.go_back()
    playwright.expect(batch).to_have_value(str(shown["scenario"]["batch"]))
    watched.settle()
    assert json.loads(watched.download("prediction_json")) == shown
    watched.page.go_back()
    watched.heading("Check")


def test_a_click_right_after_back_is_applied_to_the_inputs_that_it_restored(
    watched: Watched,
) -> None:
    watched.open("view=Check&engine=vllm-0.26&draft=eagle3:full")
    page = watched.page
    batch = page.get_by_label("Batch (sequences)")
    playwright.expect(batch).not_to_have_value("0")  # which an input has before its value
    before, link = batch.input_value(), page.get_by_label("Page", exact=True)
    shown = link.input_value()
    batch.fill("9")
    batch.press("Enter")
    playwright.expect(page).to_have_url(re.compile("batch=9"), timeout=60_000)
    playwright.expect(link).not_to_have_value(shown)  # the browser has said that it shows it
    watched.settle()
    place = page.get_by_text("Search all TP degrees in Decide").bounding_box()
    page.evaluate("new Promise(went => { addEventListener('popstate', went); history.back() })")
    page.mouse.click(place["x"] + 5, place["y"] + 5)
    playwright.expect(page).to_have_url(re.compile("search_tp=true"), timeout=60_000)
    playwright.expect(batch).to_have_value(before, timeout=60_000)
    playwright.expect(page).not_to_have_url(re.compile("batch="))


def test_a_click_on_the_map_shows_the_cell_and_a_button_uses_it(watched: Watched) -> None:
    watched.open("view=Map")
    plot = watched.page.locator(".js-plotly-plot")
    plot.wait_for()
    watched.page.wait_for_function(FINAL_WIDTH)
    watched.settle()  # the caption above the map moves it
    plot.scroll_into_view_if_needed()
    place = """name => { const p = document.querySelector('.js-plotly-plot');
        const m = p._fullData.find(t => t.name === name), l = p._fullLayout;
        const i = Math.floor(m.x.length / 3), box = p.getBoundingClientRect();
        const c = m.customdata[i];
        return {x: box.x + l.xaxis._offset + l.xaxis.d2p(m.x[i]),
                y: box.y + l.yaxis._offset + l.yaxis.d2p(m.y[i]),
                speedup: c[0], batch: c[1], prompt: c[2], gamma: c[3]} }"""
    walled = watched.page.evaluate(place, "cells that do not fit")
    watched.page.mouse.move(walled["x"], walled["y"])
    plot.locator(".hoverlayer .hovertext").first.wait_for()
    watched.page.mouse.click(walled["x"], walled["y"])
    watched.page.get_by_text("Does not fit: it needs").wait_for(timeout=30_000)
    watched.page.wait_for_function(FINAL_WIDTH)
    watched.settle()
    cell = watched.page.evaluate(place, "cells")
    watched.page.mouse.move(cell["x"], cell["y"])
    plot.locator(".hoverlayer .hovertext").first.wait_for()  # Plotly clicks what it hovers
    watched.page.mouse.click(cell["x"], cell["y"])
    watched.page.get_by_role("button", name="Use, and see why").click(timeout=30_000)
    watched.heading("Why")
    watched.settle()
    shown = json.loads(watched.download("prediction_json"))
    scenario = shown["scenario"]
    got = (scenario["batch"], scenario["prompt_tokens"], scenario["gamma"])
    assert got == (cell["batch"], cell["prompt"], cell["gamma"])
    assert shown["speedup"] == pytest.approx(cell["speedup"])
    assert f"batch={cell['batch']:.0f}" in watched.page.url


def test_a_typed_count_is_used_or_refused(watched: Watched) -> None:
    watched.open("view=Check&engine=vllm-0.26&draft=eagle3:full")
    page = watched.page
    box = page.get_by_role("spinbutton", name="Batch (sequences)")
    alert = page.locator("[data-testid=stMain] [data-testid=stAlert]")
    for typed, said in (("9" * 22, "at most"), ("2.5", "whole number"), ("1e3", "")):
        box.fill(typed)
        box.press("Enter")
        if said:
            playwright.expect(alert).to_contain_text(said, timeout=60_000)
        else:
            playwright.expect(page).to_have_url(re.compile("batch=1000(&|$)"), timeout=60_000)
            watched.settle()
            playwright.expect(alert).to_have_count(0)
            assert box.input_value() == "1000"


def test_downloads_parse(watched: Watched) -> None:
    watched.open("view=Map")
    rows = list(csv.DictReader(io.StringIO(watched.download("speedup_map_csv").decode())))
    assert len(rows) >= 64 * 64 and {"speedup", "batch", "prompt_tokens"} <= set(rows[0])
    data = json.loads(watched.download("speedup_map_json"))
    assert len(data["rows"]) == len(rows) and data["alt"].startswith("Heat map")
    watched.page.locator(".js-plotly-plot").hover()
    with watched.page.expect_download() as download:
        watched.page.locator("[data-title*='ownload plot']").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
    title = watched.page.locator(".js-plotly-plot .gtitle")  # on the PNG, hidden on the page
    assert "Self-speculation" in title.text_content() and not title.is_visible()


# Contrast of the text of an element with the first opaque background behind it.
CONTRAST = """elements => elements.filter(e => e.isConnected).map(e => {
    const rgba = c => { const m = c.match(/[\\d.]+/g).map(Number);
        return [...m.slice(0, 3), m.length > 3 ? m[3] : 1] };
    const style = getComputedStyle(e);
    let [r, g, b, a] = rgba(e instanceof SVGElement ? style.fill : style.color), back = null;
    for (let p = e; p && !back; p = p.parentElement) {
        a *= Number(getComputedStyle(p).opacity);
        const colour = rgba(getComputedStyle(p).backgroundColor);
        back = colour[3] === 1 ? colour.slice(0, 3) : null;
    }
    back ??= [255, 255, 255];
    const light = c => c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92
        : ((v + 0.055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
    const front = light([r, g, b].map((v, i) => a * v + (1 - a) * back[i])), behind = light(back);
    return (Math.max(front, behind) + 0.05) / (Math.min(front, behind) + 0.05);
})"""
TEXTS = (
    ".js-plotly-plot .xtick text",
    ".js-plotly-plot .ytick text",
    ".js-plotly-plot .legendtext",
    ".js-plotly-plot .xtitle",
    ".js-plotly-plot .bartext",
    "[data-testid=stCaptionContainer] p",
    "[data-testid=stCode] code span",
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_needs_no_sideways_scrolling_and_its_text_has_contrast(
    watched: Watched, scheme: str
) -> None:
    watched.page.set_viewport_size({"width": 390, "height": 844})
    watched.page.emulate_media(color_scheme=scheme)
    views = CHARTS if scheme == "dark" else {"Why": CHARTS["Why"], "Check": CHARTS["Check"]}
    watched.open(f"view={next(iter(views))}")
    for view, charts in views.items():
        if view != next(iter(views)):
            watched.view(view, charts)
        assert watched.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
        for texts in TEXTS:
            ratios = watched.page.locator(f"[data-testid=stMain] {texts}").evaluate_all(CONTRAST)
            assert min(ratios, default=21) >= 4.5, (view, texts)
    assert watched.errors == []


@pytest.mark.parametrize("query", ["view=Map", "view=Why&why_part=tune"])
def test_a_swipe_over_a_chart_scrolls_the_page(watched: Watched, query: str) -> None:
    watched.page.set_viewport_size({"width": 390, "height": 844})
    watched.open(query)
    plot = watched.page.locator(".js-plotly-plot").first
    plot.locator(".main-svg .subplot.xy").first.wait_for()
    plot.scroll_into_view_if_needed()
    look = "p => [p.closest('[data-testid=stMain]').scrollTop, p._fullLayout.yaxis.range]"
    top, before = plot.evaluate(look)
    box = plot.bounding_box()
    x, y = box["x"] + 150, box["y"] + 150
    touch = watched.page.context.new_cdp_session(watched.page)
    for kind, points in (
        ("touchStart", [{"x": x, "y": y}]),
        *(("touchMove", [{"x": x, "y": y - 12 * step}]) for step in range(1, 13)),
        ("touchEnd", []),
    ):
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        watched.page.evaluate("() => new Promise(requestAnimationFrame)")
    scrolled = f"document.querySelector('[data-testid=stMain]').scrollTop > {top + 50}"
    watched.page.wait_for_function(scrolled, timeout=30_000)
    moved, after = plot.evaluate(look)
    assert moved > top and after == before
    if query == "view=Map":
        box = plot.bounding_box()
        watched.page.touchscreen.tap(box["x"] + 150, max(box["y"], 0) + 200)
        watched.page.get_by_role("button", name="Use on this page").wait_for(timeout=30_000)
