"""A file is what its first bytes, its name and its media type agree on."""

import pytest

from app.errors import UnsupportedMedia
from app.media import DOCX, DOCX_TYPE, FORMATS, HTML, MARKDOWN, PDF, TEXT, recognise
from tests import documents

PDF_BYTES = b"%PDF-1.7\n..."
DOCX_BYTES = documents.raw_docx("<document/>")
PAGE = b"<!DOCTYPE html><html><body>Hello</body></html>"


@pytest.mark.parametrize(
    ("name", "data", "media_type", "expected"),
    [
        ("paper.pdf", PDF_BYTES, "application/pdf", PDF),
        ("paper.PDF", PDF_BYTES, None, PDF),
        ("paper", PDF_BYTES, "application/octet-stream", PDF),
        ("paper.v2", PDF_BYTES, None, PDF),  # the bytes leave no doubt
        ("letter.docx", DOCX_BYTES, DOCX_TYPE, DOCX),
        ("page.html", PAGE, "text/html; charset=utf-8", HTML),
        ("page", PAGE, None, HTML),
        ("page.txt", PAGE, None, TEXT),  # somebody wants the source
        ("notes.md", b"# Notes", "text/plain", MARKDOWN),
        ("notes", b"# Notes", "text/markdown", MARKDOWN),
        ("README", b"Read me", None, TEXT),
        ("main.ts", b"let x = 1", "video/mp2t", FORMATS["ts"]),  # what Python's mimetypes says of .ts
        ("signs.txt", "naïve".encode("utf-16"), "text/plain", TEXT),
        ("about-pdf.md", b"A PDF begins with %PDF-1.7.", None, MARKDOWN),
        ("MZ.txt", b"MZ is the code of Mozambique.", None, TEXT),
    ],
)
def test_name_content_and_media_type_agree(name, data, media_type, expected):
    """Whatever says nothing (no extension, a generic type) leaves it to the others."""
    assert recognise(name, data, media_type) == expected


@pytest.mark.parametrize(
    ("name", "data", "media_type", "named"),
    [
        ("a.docx", PDF_BYTES, None, "a PDF file named as a Word document"),
        ("a.pdf", DOCX_BYTES, None, "a Word document (DOCX) named as a PDF file"),
        ("a.txt", PDF_BYTES, None, "a PDF file named as a text"),
        ("a.pdf", b"plain text", None, "a text named as a PDF file"),
        ("a.pdf", PDF_BYTES, "text/plain", "a PDF file sent as text/plain"),
        ("a.txt", b"plain text", "application/pdf", "a text sent as application/pdf"),
        ("a.docx", documents.archive({"xl/workbook.xml": "<x/>"}), None, "a ZIP archive that is no Word document"),
        ("a.txt", b"MZ\x90\0\x03", None, "a Windows program"),
        ("a.txt", b"\x7fELF\x02\x01\x01\0", "text/plain", "an ELF program"),
        ("a.pdf", b"\x89PNG\r\n\x1a\n\0", "application/pdf", "a PNG image"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0", None, "an old Office document"),
        ("a.rtf", b"{\\rtf1 hello}", None, "an RTF document"),
        ("a.txt", b"any\0thing", None, "binary data"),
        ("a.xyz", b"plain text", None, "a .xyz file"),
    ],
)
def test_a_contradiction_is_refused_naming_both_sides(name, data, media_type, named):
    """415, with what the file is, what it is called, and what would be read."""
    with pytest.raises(UnsupportedMedia) as caught:
        recognise(name, data, media_type)
    assert named in str(caught.value)
    assert ".docx" in caught.value.supported


def test_a_page_of_comments_takes_no_time():
    """Comments could be matched in exponentially many ways."""
    assert recognise("a", b"<!---->" * 500, None) == TEXT
    assert recognise("a", b"<!---->" * 500 + b"<html>", None) == HTML
