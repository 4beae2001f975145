"""Where a Markdown text has headings and tables. Pure, one pass over the lines; runs in the reading child.

Not a Markdown parser: blocks of quotes, HTML and lists are text to it, and a heading in one of them is none.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
ATX = re.compile(r" {0,3}(#{1,6})(?=[ \t]+[^\s#])")
SETEXT = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")  # under a line of text; one "-" alone begins a list
TEXT_LINE = re.compile(r" {0,3}[^\s>|#=`~+*\d-]")  # that a setext underline may make a heading of
ROW = re.compile(r"\s*\|.*\||.*\S \| \S")  # with pipes around it, or as our readers of HTML and DOCX write it
TITLE_CHARS = 100  # of one heading in a path
PATH_CHARS = 300
ARROW = " › "

Span = tuple[int, int]
Chunking = Literal["structure", "plain"]  # whether chunks heed the outline


class Outline(NamedTuple):
    """Sections and tables of a text, as spans in order. A section starts with its heading and ends before the next
    one of its level or above, so that sections nest; tables do not.
    """

    sections: tuple[Span, ...]
    tables: tuple[Span, ...]


def outline(markdown: str) -> Outline:
    """The sections and tables of a text."""
    headings, rows = [], []
    for start, line, following in _prose(markdown):
        if ROW.match(line):
            rows.append((start, start + len(line)))
        elif atx := ATX.match(line):
            headings.append((start, len(atx[1])))
        elif TEXT_LINE.match(line) and (under := SETEXT.match(following)):
            headings.append((start, 1 if under[1][0] == "=" else 2))
    return Outline(tuple(_sections(headings, len(markdown))), tuple(_tables(rows)))


def paths(text: str, sections: Sequence[Span], starts: Iterable[int]) -> Iterator[str]:
    """The headings above each place, outermost first, like "Guide › Install"; "" before the first one.

    starts: ascending.
    """
    waiting, open_sections = list(reversed(sections)), list[Span]()
    for place in starts:
        while waiting and waiting[-1][0] <= place:
            open_sections.append(waiting.pop())
        open_sections = [section for section in open_sections if section[1] > place]
        yield ARROW.join(_title(text, start) for start, _ in open_sections)[:PATH_CHARS]


def headed(title: str, heading: str) -> str:
    """A document's title with the headings of one of its chunks. The first of them often repeats the title."""
    if not title or heading == title or heading.startswith(title + ARROW):
        return heading or title
    return f"{title}{ARROW}{heading}" if heading else title


def _prose(text: str) -> Iterator[tuple[int, str, str]]:
    """Start of each line that stands in no fenced code, the line, and the one behind it."""
    lines = text.split("\n")
    start, fence = 0, ""
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        mark = FENCE.match(line)
        if not fence and mark:
            fence = mark[1]
        elif not fence:
            yield start, line, following
        elif mark and mark[1].startswith(fence) and not line[mark.end() :].strip():
            fence = ""
        start += len(line) + 1


def _sections(headings: Sequence[tuple[int, int]], end: int) -> list[Span]:
    """Spans of headings, given as start and level."""
    ends = [end] * len(headings)
    above: list[int] = []  # numbers of the headings whose sections are open
    for number, (start, level) in enumerate(headings):
        while above and headings[above[-1]][1] >= level:
            ends[above.pop()] = start
        above.append(number)
    return [(start, ends[number]) for number, (start, _) in enumerate(headings)]


def _tables(rows: Sequence[Span]) -> Iterator[Span]:
    """Rows that follow each other, two at least."""
    first = 0
    for number, (_, end) in enumerate(rows, start=1):
        if number == len(rows) or rows[number][0] != end + 1:
            if number - first > 1:
                yield rows[first][0], end
            first = number


def _title(text: str, start: int) -> str:
    """The words of the heading, of the header of a table, or of the first line of a definition, that starts here."""
    end = text.find("\n", start)
    line = text[start : end if end >= 0 else len(text)]
    return " ".join(line.strip().strip("#|{:( ").split())[:TITLE_CHARS]
