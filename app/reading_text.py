"""Plain text from bytes, and the cleaning of every text. Runs in the reading child, see app/reading.py."""

import codecs
import re

TITLE_CHARS = 200
PLACEHOLDER_TITLES = (
    "",
    "untitled",
    "(anonymous)",
    "(unspecified)",
    "word document",
    "microsoft word",
)  # written by programs, not by people

# Control characters, marks of byte order and non-characters: no reader sees them, PostgreSQL or UTF-8 refuse some.
CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]")
LINE_END = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
SURROGATE = re.compile("[\ud800-\udfff]")
MARKDOWN_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+([^\s#].*)$", re.MULTILINE)

BYTE_ORDER_MARKS = (  # longest first: UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


class Refused(Exception):
    """The file cannot be read, and another reader would do no better. str: why, to follow "could not be read:"."""


def clean(text: str) -> str:
    r"""The text with "\\n" for every kind of line end and without other control characters; a lone surrogate is U+FFFD.

    Nothing else changes. What comes out, every store takes.
    """
    return SURROGATE.sub("\ufffd", CONTROL.sub("", LINE_END.sub("\n", text)))


def clean_title(title: str | None) -> str | None:
    """On one line and of at most 200 characters; None where it says nothing."""
    plain = " ".join(clean(title or "").split())
    if plain.lower() in PLACEHOLDER_TITLES:
        return None
    return plain if len(plain) <= TITLE_CHARS else plain[: TITLE_CHARS - 1].rstrip() + "…"


def file_name(name: str) -> str:
    """The name without its folders, which browsers used to send; on one line, and the end of it if it is long."""
    plain = " ".join(clean(re.split(r"[\\/]", name)[-1]).split())
    return plain if len(plain) <= TITLE_CHARS else "…" + plain[1 - TITLE_CHARS :]


def first_heading(markdown: str) -> str | None:
    """The first "# heading" line. One in a code block counts as well: it would take a parser to know."""
    found = MARKDOWN_HEADING.search(markdown)
    return clean_title(found[1].rstrip(" \t#")) if found else None


def decode(data: bytes, charset: str | None = None) -> str:
    """Text in the encoding of its byte order mark; else in charset, as the sender says; else in UTF-8; else, where it
    is not meant as UTF-8, in Latin-1 as browsers read it (Windows-1252).

    Raises Refused, naming the first byte at fault.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _strictly(data, encoding)
    if charset is not None and _is_text_encoding(charset):
        return _strictly(data, charset)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if _meant_as_utf8(data):
            raise Refused(_at_fault(error, "UTF-8")) from error
    return _strictly(data, "cp1252")


def _strictly(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeError as error:
        raise Refused(_at_fault(error, encoding)) from error


def _at_fault(error: UnicodeError, encoding: str) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"it is not valid {encoding}: byte 0x{error.object[error.start]:02x} at {error.start}"
    return f"it is not valid {encoding}"


def _meant_as_utf8(data: bytes) -> bool:
    """Whether more characters outside ASCII are right in UTF-8 than wrong."""
    text = data.decode(errors="replace")
    wrong = text.count("\ufffd")
    return len(text) - len(text.encode("ascii", "ignore")) - wrong > wrong


def _is_text_encoding(name: str) -> bool:
    try:
        return codecs.lookup(name)._is_text_encoding  # noqa: SLF001 – the only way to tell latin-1 from zlib
    except LookupError:
        return False
