"""Cut a document's text into chunks at headings, paragraphs, sentences or statements, with exact offsets. Pure.

A Markdown text is parted into blocks first: at its headings, but that short sections stay together, and around tables,
which stay whole. Within a block the boundaries are semantic-text-splitter's. It is fed windows and not the whole text,
because it is quadratic in the length of a paragraph: a million characters on one line took 20 s at once, and take 0.3 s
in windows.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from semantic_text_splitter import CodeSplitter, MarkdownSplitter, TextSplitter

from app.outline import Chunking, Outline, Span, outline, paths
from app.outline_code import definitions, grammar

if TYPE_CHECKING:
    from app.messages import Chunk

Kind = Literal[
    "text", "markdown", "python", "javascript", "typescript", "tsx", "java", "go", "rust", "c", "cpp"
]  # how a text is cut

WINDOW_CHUNKS = {"text": 16}  # length of a window, in chunks; the cost per character grows with it
STRUCTURED_WINDOW_CHUNKS = 64  # Markdown and code have boundaries that are known only with what is around them
NON_SPACE = re.compile(r"\S")
TABLE_CHUNKS = 4  # times chunk_chars that a table may have and stay whole
SHORT_SECTIONS = 0.5  # of chunk_chars, up to which sections share a chunk; chosen on Node.js' manual, docs/retrieval.md

WRAPPED_CHARS = 40  # narrower blocks of lines are verse, tables and lists, not wrapped prose
SHORT_CHARS = 20  # a line so short ends where it does for a reason
SENTENCE_ENDS = (".", "!", "?", ":", ";")
WRAP_TOLERANCE = 0.85  # lines of proportional type differ by so much in characters
LIST_ITEM = re.compile(r"\s|[-*+•·–—|>#]\s?|\d{1,2}(?:\.\d{1,2})*\s|\(?(?:[A-Za-z]|\d{1,3}|[ivx]+)[.)]\s")


def cut_as(kind: Kind, chunking: Chunking) -> Kind:
    """What a text of this kind is cut as: `plain` sees nothing but paragraphs and sentences in it."""
    return kind if chunking == "structure" else "text"


def cut(
    text: str, *, kind: Kind = "text", chunk_chars: int = 512, overlap_chars: int = 50, page_starts: Sequence[int] = ()
) -> "tuple[Chunk, ...]":
    """The chunks of a text, in order; none for a text of white space.

    text[chunk.start:chunk.end] == chunk.text, which has no white space at either end and at most chunk_chars
    characters, or four times as many for a table. Neighbours share at most overlap_chars. chunk.heading: the headings
    above its start. page_starts: where each page begins in the text, ascending; a chunk's page is the one that it
    starts on.
    """
    outlined = outline_of(text, kind=kind, chunk_chars=chunk_chars)
    found = spans(text, outlined, kind=kind, chunk_chars=chunk_chars, overlap_chars=overlap_chars)
    return chunks_at(text, tuple(found), outlined.sections, page_starts)


def chunks_at(
    text: str, found: Sequence[Span], sections: Sequence[Span] = (), page_starts: Sequence[int] = ()
) -> "tuple[Chunk, ...]":
    """The chunks at the spans that were found in the text."""
    from app.messages import Chunk  # here, because the reading child needs `spans` and not pydantic's 0.2 s

    headings = paths(text, sections, (start for start, _ in found))
    return tuple(
        Chunk(
            number=number,
            text=text[start:end],
            start=start,
            end=end,
            page=max(1, bisect_right(page_starts, start)) if page_starts else None,
            heading=heading,
        )
        for number, ((start, end), heading) in enumerate(zip(found, headings, strict=True))
    )


def outline_of(text: str, *, kind: Kind, chunk_chars: int) -> Outline:
    """Sections, and tables that fill more than a chunk. One too long to stay whole is a section, below its header.

    The sections of source code are its classes and functions.
    """
    if kind == "text":
        return Outline((), ())
    if kind != "markdown":
        return Outline(definitions(text, kind), ())
    sections, tables = outline(text)
    too_long = [table for table in tables if table[1] - table[0] > TABLE_CHUNKS * chunk_chars]
    large = tuple(table for table in tables if table[1] - table[0] > chunk_chars)
    return Outline(tuple(sorted([*sections, *too_long])), large)


def spans(text: str, outlined: Outline, *, kind: Kind, chunk_chars: int, overlap_chars: int) -> Iterator[Span]:
    """Start and end of each chunk."""
    splitter = _splitter(kind, chunk_chars, overlap_chars)
    view = unwrap(text) if kind == "text" else text
    window = WINDOW_CHUNKS.get(kind, STRUCTURED_WINDOW_CHUNKS) * chunk_chars
    whole = {table for table in outlined.tables if table[1] - table[0] <= TABLE_CHUNKS * chunk_chars}
    sections = outlined.sections if kind == "markdown" else ()  # in code the splitter knows where to cut
    for block in _blocks(sections, outlined.tables, len(text), int(SHORT_SECTIONS * chunk_chars)):
        for start, end in (block,) if block in whole else _windows(view, block, splitter, window):
            stripped = _strip(view, start, end)
            if stripped[0] < stripped[1]:
                yield stripped


def _blocks(sections: Sequence[Span], tables: Sequence[Span], size: int, short: int) -> Iterator[Span]:
    """What no chunk crosses: tables, and what is between them of sections, which are joined while they are short."""
    cuts = {0, size, *(place for table in tables for place in table)}
    start = 0
    for place, following in pairwise([*(first for first, _ in sections), size]):
        if following - start > short:
            cuts.add(place)
            start = place
    yield from pairwise(sorted(cuts))


def _windows(
    view: str, block: Span, splitter: TextSplitter | MarkdownSplitter | CodeSplitter, window: int
) -> Iterator[Span]:
    """The splitter's chunks of a block. A window ends where its last chunk but one does: the last is cut again, with
    more text behind it.
    """
    position, block_end = block
    while found := NON_SPACE.search(view, position, block_end):  # line ends alone take MarkdownSplitter seconds
        position = found.start()
        end = min(position + window, block_end)
        chunks = splitter.chunk_indices(view[position:end])
        resume = position + chunks.pop()[0] if end < block_end and len(chunks) > 1 else end
        yield from ((position + offset, position + offset + len(chunk)) for offset, chunk in chunks)
        position = resume


def unwrap(text: str) -> str:
    """The text with a space for each line end that only wraps a paragraph. Same length, so that offsets hold.

    A line end wraps where the next line's first word would not have fitted, by the longest line near by. At the end of
    a sentence it may as well be a paragraph's end, and stays: a cut does no harm there.
    """
    lines = text.split("\n")
    pieces = []
    for number, line in enumerate(lines[:-1]):
        wraps = len(line) > SHORT_CHARS and _wraps(lines, number)
        pieces += [line, " " if wraps else "\n"]
    return "".join([*pieces, lines[-1]])


def _wraps(lines: Sequence[str], number: int) -> bool:
    line, following = lines[number], lines[number + 1]
    width = max(len(near) for near in lines[max(0, number - 3) : number + 4])
    full = len(line) + 1 + len(following.split(" ", 1)[0]) > WRAP_TOLERANCE * width
    prose = following != "" and width >= WRAPPED_CHARS and not LIST_ITEM.match(following)
    return full and prose and not line.endswith(SENTENCE_ENDS)


def _splitter(kind: Kind, chars: int, overlap: int) -> TextSplitter | MarkdownSplitter | CodeSplitter:
    if kind == "text":
        return TextSplitter(chars, overlap)
    if kind == "markdown":
        return MarkdownSplitter(chars, overlap)
    return CodeSplitter(grammar(kind), chars, overlap)


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    """Without white space at either end, as Python sees white space; the splitter keeps some."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
