"""HTML pages escape hostile text, render tables, and load nothing."""

from html.parser import HTMLParser

import pytest

from app.render.html_page import bullets, code, html_page, plain, table

HOSTILE = (
    "<script>alert(1)</script>",
    "![x](http://evil.example/x.png)",
    "[a](javascript:alert(1))",
    "<http://evil.example>",
    "a | b | c",
    "# heading\n\n- item",
    "``` `code` ```",
    "*bold* _it_ **x** ~~y~~ \\ & &amp; $x$",
    "1. first",
)


class Page(HTMLParser):
    """Elements and text of a page's body."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page[page.index("<body>") : page.index("</body>")])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_shown_verbatim(text: str) -> None:
    line = " ".join(text.split())
    page = Page(html_page("t", f"# {plain(text)}", bullets([text]), code(text)))
    assert page.tags == ["body", "h1", "ul", "li", "p", "code"]
    assert [part for part in page.text.splitlines() if part.strip()] == [line, line, line]
    cells = Page(html_page("t", table(("name", text), [("row", text)])))
    assert cells.tags.count("td") == cells.tags.count("th") == 2
    assert cells.text.count(line) == 2


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_of_a_report_cannot_fetch_or_run(text: str) -> None:
    page = Page(html_page("t", text))
    assert not {"script", "img", "a", "iframe", "link"} & set(page.tags)


def test_the_title_is_escaped_and_a_page_without_charts_is_small() -> None:
    page = html_page("<b>", "text", [])
    assert "<title>specroof: &lt;b&gt;</title>" in page and len(page) < 5_000
