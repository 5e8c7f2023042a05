"""Start and redraw times of the explorer in a headless Chromium.

`python benchmarks/bench_explorer.py` prints three times. Start: from `specroof explore` until the
page shows a recommendation, with the browser already running and its cache warm, and with Python's
bytecode as in an installation, and the CPU time of the server until then; medians of several
starts. Chart: from there until the map is drawn on a new page. Redraw: from a key press on a slider
until the browser shows the 64 x 64 map for the new value, which is never in the server's cache.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from playwright.sync_api import sync_playwright

from app.cli.commands.explore import explorer_command
from app.explorer.link import query_of

ROOT = Path(__file__).parents[1]
MOVES = 25
STARTS = 5
VERDICT = "[data-testid=stMain] [data-testid=stAlert]"
DRAWN = "[data-testid=stMain] .js-plotly-plot .main-svg .subplot.xy"

# Resolves in the frame after the chart took new values: Plotly draws before it yields.
WATCH = """() => {
    const plot = () => document.querySelector('.js-plotly-plot');
    const old = plot().data[0].z;
    window.redrawn = new Promise(done => {
        const look = () => plot()?.data && plot().data[0].z !== old
            && plot().querySelector('.subplot.xy')
            ? requestAnimationFrame(done) : requestAnimationFrame(look);
        look();
    });
}"""


def free_port() -> int:
    """A free port."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


PORT = free_port()
BYTECODE = tempfile.TemporaryDirectory()


def serve() -> subprocess.Popen[bytes]:
    """Start the explorer."""
    return subprocess.Popen(
        explorer_command(port=PORT, browser=False),
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": BYTECODE.name},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    """CPU time of a process so far; NaN where the system has no /proc."""
    path = Path(f"/proc/{process.pid}/stat")
    if not path.exists():
        return math.nan
    fields = path.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_seconds(page: Any) -> tuple[subprocess.Popen[bytes], tuple[float, float, float]]:
    """The server; seconds from its start to a verdict, of the page alone, and of its CPU."""
    begin = time.perf_counter()
    process = serve()
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("localhost", PORT)) == 0:
                break
        time.sleep(0.02)
    listening = time.perf_counter()
    page.goto(f"http://localhost:{PORT}/")
    page.locator(VERDICT).first.wait_for(timeout=60_000)
    end = time.perf_counter()
    return process, (end - begin, end - listening, cpu_seconds(process))


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server, which would otherwise wait for its open page."""
    process.kill()
    process.wait()


def chart_seconds(page: Any) -> float:
    """Seconds until a new page of the server shows the map."""
    begin = time.perf_counter()
    page.goto(f"http://localhost:{PORT}/?{urlencode(query_of({'view': 'Map'}))}")
    page.locator(DRAWN).first.wait_for(timeout=60_000)
    return time.perf_counter() - begin


def redraw_seconds(page: Any) -> list[float]:
    """Seconds of each of `MOVES` moves of the acceptance slider on the map."""
    query = query_of({"view": "Map", "acceptance_form": "acceptance"})
    page.goto(f"http://localhost:{PORT}/?{urlencode(query)}")
    page.locator(DRAWN).first.wait_for(timeout=60_000)
    page.wait_for_timeout(1500)
    slider = page.locator(".st-key-acceptance input[type=range]")
    slider.focus()
    times = []
    for _ in range(MOVES):
        page.evaluate(WATCH)
        begin = time.perf_counter()
        page.keyboard.press("ArrowRight" if len(times) % 50 < 19 else "ArrowLeft")
        page.evaluate("() => window.redrawn")
        times.append(time.perf_counter() - begin)
        page.wait_for_timeout(300)
    return times


def main() -> None:
    """Print the times; the first start only warms the browser up."""
    with sync_playwright() as play:
        chromium = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        starts = []
        for number in range(STARTS + 1):
            process, times = start_seconds(page)
            starts += [times] if number else []
            if number < STARTS:
                stop(process)
        total, alone, cpu = map(statistics.median, zip(*starts, strict=True))
        print(
            f"start to verdict, browser warm, medians of {STARTS}: {total:.2f} s "
            f"(page alone {alone:.2f} s; server's CPU {cpu:.2f} s)"
        )
        print(f"to the map on a new page: {chart_seconds(page):.2f} s")
        moves = redraw_seconds(page)
        print(
            f"slider to redrawn 64 x 64 map: median {statistics.median(moves):.2f} s, "
            f"worst {max(moves):.2f} s of {len(moves)}"
        )
        stop(process)
        chromium.close()


if __name__ == "__main__":
    main()
