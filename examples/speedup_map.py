"""Draw the README's picture: speedup by batch and context, with the break-even line.

python examples/speedup_map.py map.html     # interactive; needs plotly (specroof[report])
python examples/speedup_map.py map.svg      # drawn by a headless Chromium through playwright
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from urllib.parse import unquote

import specroof
from app import charts

WIDTH, HEIGHT = 860, 460  # pixels
PLAN = {
    "gpu": "h100-sxm",
    "tp": 1,
    "batch": 8,
    "prompt_tokens": 32_000,
    "draft": "self",
    "draft_policy": "streamingllm",
    "kv_budget": 512,
    "gamma": 3,
}


def main(path: Path) -> None:
    """Write the map to `path`, as HTML or SVG depending on its suffix."""
    grid = speedups()
    figure = charts.speedup_map(grid.scenario, grid)
    figure.update_layout(
        title_text="Llama-3.1-8B on one H100: speedup of self-speculation (line: break-even)"
    )
    html = figure.to_html(include_plotlyjs=True, default_width=WIDTH, default_height=HEIGHT)
    if path.suffix == ".svg":
        desc = f"<desc>{' '.join(f'{value:.2f}' for value in grid.speedup.flat)}</desc>"
        path.write_text(svg_of(html).replace("</svg>", f"{desc}</svg>"))
    else:
        path.write_text(html)


def speedups() -> charts.SpeedupGrid:
    """The speedups that the map shows."""
    return charts.speedup_grid(specroof.predict("llama-3.1-8b", **PLAN).scenario)


def svg_of(html: str) -> str:
    """The first chart of an HTML page as SVG text."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.set_content(html)
        page.wait_for_selector(".js-plotly-plot .main-svg")
        url = page.evaluate(
            "size => Plotly.toImage(document.querySelector('.js-plotly-plot'),"
            " {format: 'svg', width: size[0], height: size[1]})",
            [WIDTH, HEIGHT],
        )
        browser.close()
    return unquote(url.partition(",")[2])


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].endswith((".html", ".svg")):
        sys.exit("usage: python examples/speedup_map.py OUT.html|OUT.svg")
    main(Path(sys.argv[1]))
