"""The text of a DOCX as Markdown. Runs in the reading child, see app/reading.py.

Read from its XML with lxml, as events without a tree. Not with python-docx, which drops tracked insertions, content
controls and text boxes, and builds the whole tree. Not read: images, comments, headers, footers, deleted text.
"""

import io
import re
import zipfile
from collections.abc import Mapping

from lxml import etree  # type: ignore[import-untyped]

from app.reading_text import Refused

BODY = "word/document.xml"
NOTES = ("word/footnotes.xml", "word/endnotes.xml")
HEADING = re.compile(r"(?:title|heading (\d))", re.IGNORECASE)  # names of Word's own styles are English in every file
LIST = re.compile(r"list ", re.IGNORECASE)


def docx_text(data: bytes, max_unpacked: int) -> tuple[str | None, str]:
    """Title and text: paragraphs and tables in the order of the document, foot and end notes behind them."""
    parts = _unpack(data, max_unpacked)
    if BODY not in parts:
        raise Refused(f"it has no {BODY}, which a DOCX must have")
    styles, properties = _Styles(), _Properties()
    _parse("word/styles.xml", parts, styles)
    _parse("docProps/core.xml", parts, properties)
    texts = []
    for name in (BODY, *NOTES):
        text = _Text(styles.prefixes)
        _parse(name, parts, text)
        texts += text.blocks
    return "".join(properties.title), "".join(texts)


def _unpack(data: bytes, limit: int) -> dict[str, bytes]:
    """The parts that we read. The sizes are those that the archive's directory states; unpacking stops at them."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
            size = sum(member.file_size for member in members)
            if size > limit:
                raise Refused(f"it unpacks to {size / 2**20:.0f} MiB, the limit is {limit / 2**20:.0f} MiB")
            if any(member.flag_bits & 1 for member in members):
                raise Refused("it is encrypted")
            wanted = {BODY, *NOTES, "word/styles.xml", "docProps/core.xml"}
            return {member.filename: archive.read(member) for member in members if member.filename in wanted}
    except (MemoryError, Refused):
        raise
    except Exception as error:  # zipfile, zlib, bz2 and lzma have no common class
        raise Refused(f"its ZIP archive is damaged ({error})") from error


def _parse(name: str, parts: Mapping[str, bytes], target: "_Events") -> None:
    if name not in parts:
        return
    try:
        etree.fromstring(parts[name], etree.XMLParser(target=target, resolve_entities=False, no_network=True))
    except etree.XMLSyntaxError as error:
        raise Refused(f"its {name} is no valid XML ({error.msg})") from error


class _Events:
    """A target of lxml's parser. Tags and attributes come without their namespaces."""

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self.open(_local(tag), {_local(key): value for key, value in attributes.items()})

    def end(self, tag: str) -> None:
        self.shut(_local(tag))

    def open(self, _tag: str, _attributes: Mapping[str, str], /) -> None: ...

    def shut(self, _tag: str, /) -> None: ...

    def data(self, data: str) -> None: ...

    def close(self) -> None: ...


def _local(name: str) -> str:
    return name.rpartition("}")[2]


class _Properties(_Events):
    """The title, dc:title."""

    def __init__(self) -> None:
        self.title: list[str] = []
        self._inside = False

    def open(self, tag: str, _attributes: Mapping[str, str]) -> None:
        self._inside = tag == "title"

    def shut(self, _tag: str) -> None:
        self._inside = False

    def data(self, data: str) -> None:
        if self._inside:
            self.title.append(data)


class _Styles(_Events):
    """What stands before a paragraph of each style that is a heading or a list."""

    def __init__(self) -> None:
        self.prefixes: dict[str, str] = {}
        self._style = ""

    def open(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag == "style":
            self._style = attributes.get("styleId", "")
        elif tag == "name":
            name = attributes.get("val", "")
            if found := HEADING.fullmatch(name):
                self.prefixes[self._style] = "#" * min(int(found[1] or 1), 6) + " "
            elif LIST.match(name):
                self.prefixes[self._style] = "- "


class _Text(_Events):
    """Paragraphs and table rows as Markdown, in `blocks`."""

    def __init__(self, prefixes: Mapping[str, str]) -> None:
        self.blocks: list[str] = []
        self._prefixes = prefixes
        self._paragraph: list[str] = []
        self._prefix = ""
        self._rows: list[list[str]] = []  # of the tables that are open, the innermost last: the cells of its row
        self._cells: list[list[str]] = []  # likewise: the paragraphs of its cell
        self._in_text = False
        self._in_properties = 0
        self._in_fallback = 0  # the same text box again, for old readers

    def open(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._in_text = tag == "t" and not self._in_fallback
        if tag == "Fallback":
            self._in_fallback += 1
        elif tag == "pPr":
            self._in_properties += 1
        elif self._in_properties:
            self._property(tag, attributes)
        elif tag == "tr":
            self._rows.append([])
        elif tag == "tc" and self._rows:
            self._cells.append([])
        elif tag in ("tab", "br", "cr", "ptab"):
            self._paragraph.append("\t" if "tab" in tag else "\n")
        elif tag == "noBreakHyphen":
            self._paragraph.append("-")

    def shut(self, tag: str) -> None:
        self._in_text = False
        if tag == "Fallback":
            self._in_fallback -= 1
        elif tag == "pPr":
            self._in_properties -= 1
        elif tag == "p":
            self._end_paragraph()
        elif tag == "tc" and len(self._cells) == len(self._rows) > 0:
            self._rows[-1].append(" ".join(self._cells.pop()))
        elif tag == "tr" and self._rows:
            self._end_row(" | ".join(self._rows.pop()))
        elif tag == "tbl" and not self._cells:
            self.blocks.append("\n")

    def data(self, data: str) -> None:
        if self._in_text:
            self._paragraph.append(data)

    def _property(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag == "pStyle":
            self._prefix = self._prefixes.get(attributes.get("val", ""), "")
        elif tag == "numPr" and not self._prefix:
            self._prefix = "- "

    def _end_row(self, row: str) -> None:
        if self._cells:  # the table lies in another one's cell
            self._cells[-1].append(row)
        else:
            self.blocks.append(row + "\n")

    def _end_paragraph(self) -> None:
        text = "".join(self._paragraph).strip()
        prefix, self._prefix, self._paragraph = self._prefix, "", []
        if not text:
            return
        if self._cells:
            self._cells[-1].append(" ".join(text.split()))
        elif prefix.startswith("#"):
            self.blocks.append(f"{prefix}{' '.join(text.split())}\n\n")
        else:
            self.blocks.append(f"{prefix}{text}\n" if prefix else f"{text}\n\n")
