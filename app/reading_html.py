"""The text of an HTML page as Markdown. Runs in the reading child, see app/reading.py.

Read with lxml, as events without a tree. Not with selectolax, which takes minutes over 200,000 nested tags, and not
with BeautifulSoup, which takes 20 times as long. Not read: scripts, styles, navigation, what is in attributes.
"""

import re
from collections.abc import Mapping

from lxml import etree  # type: ignore[import-untyped]

from app.reading_text import decode

CHARSET = re.compile(rb"<meta[^>]{0,200}charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
CHARSET_BYTES = 2048  # HTML wants the declaration in the first 1024

SKIPPED = frozenset(
    ("script", "style", "nav", "noscript", "template", "svg", "math", "iframe", "object", "button", "select")
)
HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
PARAGRAPHS = frozenset(
    ("p", "div", "section", "article", "main", "header", "footer", "aside", "blockquote", "figure", "figcaption", "ul",
     "ol", "dl", "table", "pre", "hr", "details", "summary", "address", "fieldset", "body", *HEADINGS)
)  # fmt: skip
LINES = frozenset(("li", "tr", "dt", "dd", "option", "caption"))
CELLS = frozenset(("td", "th"))
CELL_END = " | "
BLANK_LINES = re.compile(r"\n[ \n]*\n")
LOOSE_ITEM = re.compile(r"^- \s+(?=\S)", re.MULTILINE)  # <li><p>
BLANKS = re.compile(r"[ \t\n\r\f]+")


def html_text(data: bytes, charset: str | None = None) -> tuple[str | None, str]:
    """Title and text. charset: as HTTP says; the page's own declaration comes second."""
    declared = CHARSET.search(data[:CHARSET_BYTES])
    page = decode(data, charset or (declared[1].decode("ascii", "replace") if declared else None))
    target = _Text()
    parser = etree.HTMLParser(target=target, huge_tree=True, remove_comments=True, remove_pis=True)
    parser.feed(page)
    parser.close()
    return "".join(target.title), BLANK_LINES.sub("\n\n", LOOSE_ITEM.sub("- ", "".join(target.pieces))).strip()


class _Text:
    """A target of lxml's parser: the text as Markdown in `pieces`."""

    def __init__(self) -> None:
        self.title: list[str] = []
        self.pieces: list[str] = []
        self._skipping = 0
        self._verbatim = 0
        self._in_title = False

    def start(self, tag: str, _attributes: Mapping[str, str]) -> None:
        self._skipping += tag in SKIPPED
        self._verbatim += tag == "pre"
        self._in_title = tag == "title" and not self._skipping
        if not self._skipping:
            self._break(tag)
            self._add("\n" if tag == "br" else "")
            self._add(HEADINGS.get(tag, "- " if tag == "li" else ""))

    def end(self, tag: str) -> None:
        self._skipping -= tag in SKIPPED
        self._verbatim -= tag == "pre"
        self._in_title = False
        if self._skipping:
            return
        if tag == "tr" and self.pieces and self.pieces[-1] == CELL_END:
            self.pieces.pop()
        self._break(tag)
        self._add(CELL_END if tag in CELLS else "")

    def data(self, data: str) -> None:
        if self._in_title:
            self.title.append(data)
        elif not self._skipping:
            text = data if self._verbatim else BLANKS.sub(" ", data)
            at_line_start = not self.pieces or self.pieces[-1].endswith(("\n", " "))
            self._add(text if self._verbatim or not at_line_start else text.lstrip(" "))

    def close(self) -> None: ...

    def _add(self, text: str) -> None:
        if text:
            self.pieces.append(text)

    def _break(self, tag: str) -> None:
        if tag in PARAGRAPHS:
            self._add("\n\n")
        elif tag in LINES and self.pieces and not self.pieces[-1].endswith("\n"):
            self._add("\n")
