"""An HTML page with charts, in one file that fetches nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING

from perfmodel import ConfigError

if TYPE_CHECKING:
    import plotly.graph_objects as go

# A chart is drawn when its own element is parsed, before the grid around it has its final width.
FIT = "addEventListener('load', () => dispatchEvent(new Event('resize')))"
STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 1280px; margin: 0 auto;
       padding: 1rem }
h1 { font-size: 1.4rem; line-height: 1.3 } h2 { font-size: 1.1rem; margin-top: 2rem }
.charts { display: grid; gap: 1rem;
          grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)) }
.chart { min-width: 0; border: 1px solid #ddd; border-radius: 6px; overflow: hidden }
.chart h3 { font-size: 1rem; margin: .7rem 1rem 0 }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #eee;
         white-space: nowrap }
th:first-child, td:first-child { text-align: left }
code { background: #f4f4f4; padding: .1rem .3rem; border-radius: 3px; overflow-wrap: anywhere }
li { overflow-wrap: anywhere }
"""


def html_page(title: str, body: str, *, charts: bool = True) -> str:
    """A whole page; `body` is HTML, `charts` whether it needs plotly.js.

    Raises
    ------
    ConfigError
        If plotly is not installed and charts need it.
    """
    script = FIT
    if charts:
        with plotly_needed():
            from plotly.offline import get_plotlyjs
        script = f"{get_plotlyjs()};{FIT}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>specroof: {escape(title)}</title>'
        f"<style>{STYLE}</style><script>{script}</script></head>\n"
        f"<body>{body}</body></html>\n"
    )


@contextmanager
def plotly_needed() -> Iterator[None]:
    """Imports of charts; where plotly is missing, one line that says so."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            "charts need plotly; install specroof with its extra: specroof[report]"
        ) from error


def chart_element(figure: go.Figure) -> str:
    """A figure under its title, which as text wraps on a narrow screen."""
    title = figure.layout.title.text
    figure.update_layout(title_text="", margin_t=10)
    element = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"responsive": True, "displayModeBar": False},
    )
    return f'<div class="chart"><h3>{escape(title)}</h3>{element}</div>'
