"""A self-contained HTML page of Markdown texts and Plotly figures.

Markdown is rendered without raw HTML, links and images, so no text can make the page load or run
anything. Text from users goes through `plain` or `code`, which escape it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from markdown_it import MarkdownIt

_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


def html_page(title: str, *parts: str | Sequence[go.Figure]) -> str:
    """The page as text; `title` is shown in the browser tab after the program's name.

    The parts are Markdown, or figures to draw side by side, in the order of the page.
    """
    drawn = any(not isinstance(part, str) and part for part in parts)
    render = _renderer().render
    body = "".join(render(part) if isinstance(part, str) else _charts(part) for part in parts)
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), plotly=_plotly_js() if drawn else "", body=body)


def plain(text: str) -> str:
    """Text on one line with every Markdown character escaped."""
    return _PUNCTUATION.sub(r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Text as a Markdown code span, even if it contains backticks."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {' '.join(text.split())} {fence}"


def bullets(lines: Iterable[str]) -> str:
    """Lines as a Markdown list, escaped."""
    return "\n".join(f"- {plain(line)}" for line in lines)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of escaped cells."""
    lines = [header, *rows]
    head, *body = (f"| {' | '.join(plain(cell) for cell in line)} |" for line in lines)
    return "\n".join([head, "|---" * len(header) + "|", *body])


@cache
def _renderer() -> MarkdownIt:
    from markdown_it import MarkdownIt

    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    renderer.disable(["link", "image", "autolink", "reference"])
    renderer.add_render_rule("table_open", lambda *_: '<div class="scroll"><table>\n')
    renderer.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return renderer


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _charts(figures: Sequence[go.Figure]) -> str:
    """Figures under their titles, which are text so that they wrap on a narrow screen."""
    elements = []
    for figure in figures:
        title = figure.layout.title.text
        figure.update_layout(title_text="", margin_t=10)
        config = {"responsive": True, "displayModeBar": False}
        element = figure.to_html(full_html=False, include_plotlyjs=False, config=config)
        elements.append(f'<div class="chart"><h3>{escape(title)}</h3>{element}</div>')
    return f'<div class="charts">{"".join(elements)}</div>' if elements else ""
