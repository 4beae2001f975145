"""Chunks cover a text in order, within their size, at its own boundaries, with exact offsets."""

from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.chunking import Kind, cut, cut_as, unwrap
from app.outline_code import GRAMMARS

PARTS = st.sampled_from(
    [
        "A sentence about wheat. ", "Und noch einer über Öl! ", "漢字かな交じり文。", "👩‍👩‍👧‍👦", "e\u0301\u0302",
        "\n", "\n\n\n", "\r\n", "\t", "    ", "\u00a0", "\u2028", "# Heading\n", "- item\n", "```\n", "> ",
        "| a | b |\n", "def f(x):\n    return x\n\n", "class A { int x; }\n", "func main() {\n", "}\n",
        '"', "/* ", " */", "x" * 90,
    ]
)  # fmt: skip
TEXTS = st.lists(PARTS | st.text(st.characters(exclude_categories=("Cs",)), max_size=20), max_size=60).map("".join)


@given(text=TEXTS, kind=st.sampled_from(get_args(Kind)), size=st.integers(8, 200), data=st.data())
@settings(max_examples=300, deadline=None)
def test_chunks_cover_every_text_in_order_and_within_the_limits(text, kind, size, data):
    """No chunk is over its size (but for a table) or blank, none is out of order, every character is in one."""
    overlap = data.draw(st.integers(0, size - 1))
    chunks = cut(text, kind=kind, chunk_chars=size, overlap_chars=overlap)
    covered = 0
    for number, chunk in enumerate(chunks):
        assert chunk.number == number
        assert chunk.text == text[chunk.start : chunk.end] == chunk.text.strip() != ""
        assert len(chunk.text) <= size or (
            kind == "markdown" and len(chunk.text) <= 4 * size and all("|" in line for line in chunk.text.split("\n"))
        )
        assert not text[covered : chunk.start].strip()
        assert covered - chunk.start <= overlap
        assert chunk.end > covered
        covered = chunk.end
    assert not text[covered:].strip()


@pytest.mark.parametrize("kind", get_args(Kind))
def test_long_texts_are_cut_as_well_as_short_ones(kind):
    """A text of many windows: nothing is lost or doubled where one window ends and the next begins."""
    text = "".join(f"value_{n} = {n}; " + "\n" * (n % 7 == 0) for n in range(3000))
    chunks = cut(text, kind=kind)
    joined = text[: chunks[0].end] + "".join(text[a.end : b.end] for a, b in pairwise(chunks))
    assert joined == text[: chunks[-1].end]
    assert max(len(chunk.text) for chunk in chunks) <= 512
    assert len(chunks) < 2.5 * len(text) / 512


def test_sentences_stay_whole_where_they_fit():
    """A chunk ends with a sentence, although the limit falls into the next one."""
    text = "The first sentence is here. The second one follows it. The third closes."
    assert [chunk.text for chunk in cut(text, chunk_chars=64, overlap_chars=0)] == [
        "The first sentence is here. The second one follows it.",
        "The third closes.",
    ]


def test_wrapped_lines_are_not_taken_for_paragraphs():
    """Prose wrapped at 60 columns is cut at its sentences, and the chunk keeps the line end that the file has."""
    text = (
        "A hard-wrapped paragraph has line ends in mid-sentence. The\n"
        "splitter must not cut there. It cuts where a sentence ends\n"
        "instead, and the file's own line ends stay in the chunk.\n"
    )
    assert [chunk.text for chunk in cut(text, chunk_chars=100, overlap_chars=0)] == [
        "A hard-wrapped paragraph has line ends in mid-sentence. The\nsplitter must not cut there.",
        "It cuts where a sentence ends\ninstead, and the file's own line ends stay in the chunk.",
    ]


@given(TEXTS)
def test_unwrapping_keeps_every_offset(text):
    """Only line ends change, into one space each."""
    unwrapped = unwrap(text)
    assert len(unwrapped) == len(text)
    assert all(a == b or (a, b) == ("\n", " ") for a, b in zip(text, unwrapped, strict=True))


@pytest.mark.parametrize(
    "text",
    [
        "Title\n\n" + "word " * 12 + "\n\nBody",  # blank lines
        "- " + "word " * 12 + "\n- " + "word " * 12,  # a list
        "The paragraph before this one ends near the margin here.\nCombination is the next heading, which stays apart.",
        "Roses are red,\nviolets are blue.",  # verse
        "    indented code is long enough to look wrapped here\n    indented code is long enough to look wrapped here",
    ],
)
def test_line_ends_that_mean_something_stay(text):
    """Paragraphs, lists, verse and indented lines are not joined."""
    assert unwrap(text) == text


def test_functions_stay_whole_where_they_fit():
    """Source code is cut between functions and not at the line that fills the chunk."""
    functions = [f"def f{n}(x):\n    y = x + {n}\n    return y" for n in range(3)]
    chunks = cut("\n\n\n".join(functions), kind="python", chunk_chars=64, overlap_chars=0)
    assert [chunk.text for chunk in chunks] == functions


MANUAL = """\
# Pump

Read this first.

## Safety

{prose}

## Data

All values at 20 degrees.

| part | bar |
|------|-----|
{rows}

Measured in 2025.

### Seal

Change it yearly.
"""


def manual(rows: int) -> str:
    lines = "\n".join(f"| valve {number} | {number} |" for number in range(rows))
    return MANUAL.format(prose="Never open it while it runs. " * 5, rows=lines)


def test_no_chunk_crosses_a_heading_but_of_short_sections():
    """A new section is a new chunk, which says under which headings it stands; two short ones share one."""
    chunks = cut("# A\n\n## B\n\nShort.\n\n## C\n\n" + "Long enough. " * 8, kind="markdown", chunk_chars=128)
    assert [(chunk.text[:8], chunk.heading) for chunk in chunks] == [("# A\n\n## ", "A"), ("## C\n\nLo", "A › C")]


def test_a_table_stays_whole_up_to_four_chunks():
    """It is a chunk of its own, between the text before it and the text behind it, under its heading."""
    chunks = cut(manual(20), kind="markdown", chunk_chars=128, overlap_chars=20)
    (table,) = [chunk for chunk in chunks if "|" in chunk.text]
    assert table.text.count("\n") == 21
    assert (table.heading, len(table.text) > 128) == ("Pump › Data", True)


def test_a_longer_table_is_cut_between_rows_below_its_header():
    """No row is torn, and every piece says what its columns are."""
    chunks = cut(manual(200), kind="markdown", chunk_chars=128, overlap_chars=0)
    pieces = [chunk for chunk in chunks if "| valve" in chunk.text]
    assert len(pieces) > 10
    for piece in pieces:
        assert piece.heading == "Pump › Data › part | bar"
        assert all(line.startswith("| ") and line.endswith(" |") for line in piece.text.split("\n")[2:])
        assert len(piece.text) <= 128


def test_structure_can_be_switched_off():
    """`documents.chunking: plain` fills chunks to the brim, across headings."""
    text = manual(3)
    plain = cut(text, kind=cut_as("markdown", "plain"))
    assert [chunk.heading for chunk in plain] == [""]
    assert cut_as("markdown", "structure") == "markdown"
    assert (cut_as("python", "plain"), cut_as("python", "structure")) == ("text", "python")


def test_a_text_of_nothing_but_headings_makes_no_chunk_of_each():
    """A hostile document must not make a million chunks: they are joined up to half of a chunk's length."""
    assert len(cut("# a\n" * 50_000, kind="markdown")) < 2.5 * 200_000 / 512


def test_a_chunk_belongs_to_the_page_that_it_starts_on():
    """Pages count from 1; a page without text has no chunk."""
    text = "first page\nsecond, and on to\nfourth page"
    chunks = cut(text, chunk_chars=18, overlap_chars=0, page_starts=(0, 11, 29, 29))
    assert [(chunk.text, chunk.page) for chunk in chunks] == [
        ("first page", 1),
        ("second, and on to", 2),
        ("fourth page", 4),
    ]


def test_white_space_alone_makes_no_chunk():
    """Nothing to find, nothing to embed."""
    assert cut(" \n\t\u2003\n" * 20_000, kind="markdown") == ()


@pytest.mark.parametrize(
    ("kind", "text"), [("text", "word " * 200_000), ("markdown", "x" * 500_000), ("c", "(" * 50_000)]
)
def test_one_endless_line_takes_no_endless_time(kind, text):
    """A million characters without a line end: half a second, where the splitter alone needs twenty."""
    assert len(cut(text, kind=kind)) >= len(text.strip()) / 512


def test_every_grammar_is_installed():
    """A kind without its grammar would fail on the first upload only."""
    assert set(get_args(Kind)) - set(GRAMMARS) == {"text", "markdown"}
    for kind in get_args(Kind):
        assert len(cut("a b", kind=kind)) == 1
