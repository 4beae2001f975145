"""The outline of a Markdown text: which headings stand above each place, and where tables are."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.outline import outline, paths
from tests.work import work_s

GUIDE = """\
Before all.

# Guide

## Install ##

Run it.

### `apt`

Use apt.

Usage
-----

| option | text |
|---|---|
| -v | more |

name | use
a | b
"""


def pieces(text: str, spans: object) -> list[str]:
    return [text[start:end] for start, end in spans]


def path_at(text: str, words: str) -> str:
    (path,) = paths(text, outline(text).sections, [text.index(words)])
    return path


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ("Before all", ""),
        ("## Install", "Guide › Install"),
        ("Run it", "Guide › Install"),
        ("Use apt", "Guide › Install › `apt`"),
        ("| -v", "Guide › Usage"),
    ],
)
def test_the_path_names_the_headings_above_a_place(words: str, path: str):
    """Outermost first; a heading is above its own line, and a section ends with the next one of its level or above."""
    assert path_at(GUIDE, words) == path


def test_tables_are_rows_that_follow_each_other():
    """With pipes around them, or as our readers of HTML and Word files write them."""
    assert pieces(GUIDE, outline(GUIDE).tables) == [
        "| option | text |\n|---|---|\n| -v | more |",
        "name | use\na | b",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "```\n# a comment\n| a | b |\n| c | d |\n```",
        "~~~~ sh\n~~~\n# a comment\n~~~~",
        "```\n# never closed",
        "    # indented code",
        "#hashtag",
        "#",
        "####### seven",
        "- item\n---",
        "> quoted\n---",
        "a\n\n---",
        "one | row",
        "a || b\nc || d",
    ],
)
def test_what_only_looks_like_structure_is_none(text: str):
    """Code, rules, lists, quotes and single rows."""
    assert outline(text) == ((), ())


def test_a_path_has_bounds():
    """A heading that is an essay does not crowd out the text."""
    text = "".join(f"{'#' * level} {'word ' * 200}\n" for level in range(1, 7))
    assert [len(path) <= 300 for path in paths(text, outline(text).sections, range(0, len(text), 100))] == [True] * 61


@given(st.lists(st.sampled_from(["# a", "## b", "### c", "x", "", "```", "| a | b |", "Title", "===", "---"])))
def test_sections_nest_and_tables_do_not_overlap(lines: list[str]):
    """Whatever the lines: spans in order, each section inside of the one above it or behind it."""
    text = "\n".join(lines)
    sections, tables = outline(text)
    assert all(0 <= start < end <= len(text) for start, end in (*sections, *tables))
    assert all(a[0] < b[0] and (b[0] >= a[1] or b[1] <= a[1]) for a, b in pairwise(sections))
    assert all(a[1] < b[0] for a, b in pairwise(tables))


@pytest.mark.parametrize("line", ["# x\n", "a\n", "| a | b |\n", "#", "|", " | ", "x |", "```\n", "-", "`"])
def test_a_million_characters_of_anything_are_read_in_a_second(line: str):
    """One pass: twenty times the text takes twenty times as long."""

    def seconds(size: int) -> float:
        text = line * (size // len(line))
        return work_s(lambda: list(paths(text, outline(text).sections, range(0, len(text), 500))))

    assert seconds(400_000) < 0.05 + 60 * seconds(20_000)
