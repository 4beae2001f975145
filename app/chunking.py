"""Cut a document's text into chunks at headings, paragraphs, sentences or statements, with exact offsets. Pure.

The boundaries are semantic-text-splitter's. It is fed windows and not the whole text, because it is quadratic in the
length of a paragraph: a million characters on one line took 20 s at once, and take 0.3 s in windows.
"""

import importlib
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from semantic_text_splitter import CodeSplitter, MarkdownSplitter, TextSplitter

if TYPE_CHECKING:
    from app.messages import Chunk

Kind = Literal[
    "text", "markdown", "python", "javascript", "typescript", "tsx", "java", "go", "rust", "c", "cpp"
]  # how a text is cut

GRAMMARS = {  # module and function of the tree-sitter grammar
    "python": ("tree_sitter_python", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "java": ("tree_sitter_java", "language"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
}
WINDOW_CHUNKS = {"text": 16}  # length of a window, in chunks; the cost per character grows with it
STRUCTURED_WINDOW_CHUNKS = 64  # Markdown and code have boundaries that are known only with what is around them
NON_SPACE = re.compile(r"\S")

WRAPPED_CHARS = 40  # narrower blocks of lines are verse, tables and lists, not wrapped prose
SHORT_CHARS = 20  # a line so short ends where it does for a reason
SENTENCE_ENDS = (".", "!", "?", ":", ";")
WRAP_TOLERANCE = 0.85  # lines of proportional type differ by so much in characters
LIST_ITEM = re.compile(r"\s|[-*+•·–—|>#]\s?|\d{1,2}(?:\.\d{1,2})*\s|\(?(?:[A-Za-z]|\d{1,3}|[ivx]+)[.)]\s")


def cut(
    text: str, *, kind: Kind = "text", chunk_chars: int = 512, overlap_chars: int = 50, page_starts: Sequence[int] = ()
) -> "tuple[Chunk, ...]":
    """The chunks of a text, in order; none for a text of white space.

    text[chunk.start:chunk.end] == chunk.text, which has no white space at either end and at most chunk_chars
    characters. Neighbours share at most overlap_chars. page_starts: where each page begins in the text, ascending; a
    chunk's page is the one that it starts on.
    """
    found = spans(text, kind=kind, chunk_chars=chunk_chars, overlap_chars=overlap_chars)
    return chunks_at(text, found, page_starts)


def chunks_at(text: str, found: Iterable[tuple[int, int]], page_starts: Sequence[int] = ()) -> "tuple[Chunk, ...]":
    """The chunks at the spans that were found in the text."""
    from app.messages import Chunk  # here, because the reading child needs `spans` and not pydantic's 0.2 s

    return tuple(
        Chunk(
            number=number,
            text=text[start:end],
            start=start,
            end=end,
            page=max(1, bisect_right(page_starts, start)) if page_starts else None,
        )
        for number, (start, end) in enumerate(found)
    )


def spans(text: str, *, kind: Kind, chunk_chars: int, overlap_chars: int) -> Iterator[tuple[int, int]]:
    """Start and end of each chunk. A window ends where its last chunk but one does: the last is cut again, with more
    text behind it.
    """
    splitter = _splitter(kind, chunk_chars, overlap_chars)
    view = unwrap(text) if kind == "text" else text
    window = WINDOW_CHUNKS.get(kind, STRUCTURED_WINDOW_CHUNKS) * chunk_chars
    position = 0
    while found := NON_SPACE.search(view, position):  # a window of line ends alone takes MarkdownSplitter seconds
        position = found.start()
        chunks = splitter.chunk_indices(view[position : position + window])
        more = position + window < len(view)
        resume = position + (chunks.pop()[0] if more and len(chunks) > 1 else window)
        for offset, chunk in chunks:
            start, end = _strip(view, position + offset, position + offset + len(chunk))
            if start < end:
                yield start, end
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
    module, language = GRAMMARS[kind]
    return CodeSplitter(getattr(importlib.import_module(module), language)(), chars, overlap)


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    """Without white space at either end, as Python sees white space; the splitter keeps some."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
