"""Which kinds of files are read, and what a file is: by its first bytes, its name and its media type together. Pure.

A file must be what it is called. A PDF that is named .docx, or sent as text/plain, is refused with both named, because
whoever sent it is mistaken about it; where name or media type say nothing, the content decides. Media types other
than those of the kinds below say nothing: clients guess them from the name, and guess video/mp2t for TypeScript.
"""

import re
from dataclasses import dataclass
from typing import Literal

from app.chunking import Kind
from app.errors import UnsupportedMedia

Parser = Literal["pdf", "docx", "html", "text"]

DOCX_TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of file: what parses it, how its text is cut, and its media type."""

    parser: Parser
    kind: Kind
    media_type: str
    label: str


PDF = Format("pdf", "text", "application/pdf", "a PDF file")
DOCX = Format("docx", "markdown", DOCX_TYPE, "a Word document (DOCX)")
HTML = Format("html", "markdown", "text/html", "an HTML page")
MARKDOWN = Format("text", "markdown", "text/markdown", "a Markdown text")
TEXT = Format("text", "text", "text/plain", "a text")


def _source(kind: Kind, language: str) -> Format:
    return Format("text", kind, f"text/x-{language}", f"{language} source code")


FORMATS = {
    **dict.fromkeys(("pdf",), PDF),
    **dict.fromkeys(("docx",), DOCX),
    **dict.fromkeys(("html", "htm", "xhtml"), HTML),
    **dict.fromkeys(("md", "markdown", "mdx"), MARKDOWN),
    **dict.fromkeys(("txt", "text", "log", "rst", "adoc", "org", "tex", "csv", "tsv"), TEXT),
    # cut by their grammar
    **dict.fromkeys(("py", "pyi"), _source("python", "python")),
    **dict.fromkeys(("js", "mjs", "cjs", "jsx"), _source("javascript", "javascript")),
    **dict.fromkeys(("ts", "mts", "cts"), _source("typescript", "typescript")),
    **dict.fromkeys(("tsx",), _source("tsx", "typescript")),
    **dict.fromkeys(("java",), _source("java", "java")),
    **dict.fromkeys(("go",), _source("go", "go")),
    **dict.fromkeys(("rs",), _source("rust", "rust")),
    **dict.fromkeys(("c", "h"), _source("c", "c")),
    **dict.fromkeys(("cc", "cpp", "cxx", "hh", "hpp", "hxx"), _source("cpp", "c++")),
    # cut as text
    **dict.fromkeys(("sh", "bash", "zsh"), _source("text", "shellscript")),
    **dict.fromkeys(("json", "jsonl"), Format("text", "text", "application/json", "JSON")),
    **dict.fromkeys(("yaml", "yml"), Format("text", "text", "application/yaml", "YAML")),
    **dict.fromkeys(("toml",), Format("text", "text", "application/toml", "TOML")),
    **dict.fromkeys(("xml",), Format("text", "text", "application/xml", "XML")),
    **{
        extension: _source("text", language)
        for extension, language in {
            "cfg": "ini", "conf": "ini", "cs": "csharp", "css": "css", "dart": "dart", "diff": "diff", "ex": "elixir",
            "exs": "elixir", "f90": "fortran", "hs": "haskell", "ini": "ini", "ipynb": "jupyter", "jl": "julia",
            "kt": "kotlin", "lua": "lua", "m": "objective-c", "mk": "makefile", "patch": "diff", "php": "php",
            "pl": "perl", "proto": "protobuf", "ps1": "powershell", "r": "r", "rb": "ruby", "scala": "scala",
            "scss": "scss", "sql": "sql", "svelte": "svelte", "swift": "swift", "tf": "terraform", "vue": "vue",
            "zig": "zig",
        }.items()
    },
}  # fmt: skip

SUPPORTED = tuple(f".{extension}" for extension in FORMATS)

SIGNATURES = (  # of what is not read, to name it; some could begin a text, so that they count in binary data only
    (b"\x7fELF", "an ELF program"),
    (b"MZ", "a Windows program"),
    (b"\xca\xfe\xba\xbe", "a compiled program"),
    (b"\xcf\xfa\xed\xfe", "a macOS program"),
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"RIFF", "a RIFF file (WebP, WAV or AVI)"),
    (b"\xd0\xcf\x11\xe0", "an old Office document (DOC, XLS, PPT) or an encrypted one"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"SQLite format 3\0", "an SQLite database"),
)
TEXT_SIGNATURES = ((b"{\\rtf", "an RTF document"), (b"%!PS", "a PostScript file"))
ZIP = (b"PK\x03\x04", b"PK\x05\x06")
PDF_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*%PDF-\d")
PDF_START_BYTES = 1024  # readers accept other bytes before the mark, up to here
WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")  # UTF-16 and UTF-32: their NULs are no sign of binary data
BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # characters that no text file has
HTML_START = re.compile(rb"\s*(?:<!--(?>.*?-->)\s*)*<(?:!doctype\s+html|html)\b", re.IGNORECASE | re.DOTALL)
EXTENSION = re.compile(r"\.([A-Za-z0-9]{1,12})$")
HEAD_BYTES = 65_536  # looked at for control characters


def recognise(name: str, data: bytes, media_type: str | None = None) -> Format:
    """What to read the file as. Raises UnsupportedMedia: not a kind that we read, or not what it is called."""
    actual = _content(data)
    if isinstance(actual, str):
        raise UnsupportedMedia(name, actual, SUPPORTED)
    found = EXTENSION.search(name)
    named = FORMATS.get(found[1].lower()) if found else None
    if found and named is None and actual.parser not in ("pdf", "docx"):
        raise UnsupportedMedia(name, f"a .{found[1]} file", SUPPORTED)
    sent = _declared(media_type)
    for claimed, how in ((named, "named as"), (sent, f"sent as {media_type}, that is")):
        if claimed and _family(claimed) != _family(actual):
            raise UnsupportedMedia(name, f"{actual.label} {how} {claimed.label}", SUPPORTED)
    if _family(actual) != "text":
        return actual
    return named or (sent if actual is TEXT and sent else actual)


def _content(data: bytes) -> Format | str:
    """The format that the bytes show, TEXT where they could be any text; a str: what they are and we do not read."""
    binary = not data.startswith(WIDE_MARKS) and BINARY.search(data[:HEAD_BYTES]) is not None
    if PDF_START.match(data) or (binary and b"%PDF-" in data[:PDF_START_BYTES]):
        return PDF
    if data.startswith(ZIP):  # the names of its members stand in it as they are
        return DOCX if b"word/document" in data else "a ZIP archive that is no Word document"
    for signature, label in SIGNATURES if binary else TEXT_SIGNATURES:
        if data.startswith(signature):
            return label
    if binary:
        return "binary data"
    return HTML if HTML_START.match(data[:4096]) else TEXT


def _declared(media_type: str | None) -> Format | None:
    essence = (media_type or "").partition(";")[0].strip().lower()
    for known in (PDF, DOCX, HTML, MARKDOWN):
        if essence == known.media_type:
            return known
    return TEXT if essence.startswith("text/") else None


def _family(known: Format) -> str:
    """HTML, Markdown, text and source code are one family: each can be named as each."""
    return known.parser if known.parser in ("pdf", "docx") else "text"
