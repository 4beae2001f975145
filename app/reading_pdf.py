"""The text of a PDF, page by page. Runs in the reading child, see app/reading.py.

PDFium first: pypdf takes six times as long, but it is Python, so that what crashes PDFium is an error there.
Not read: images (there is no OCR), annotations, forms and attachments.
"""

import io
import re
from collections.abc import Iterator

from app.chunking import unwrap
from app.reading_text import Refused, clean

PASSWORD_ERROR = 4  # PDFium's FPDF_ERR_PASSWORD
ENCRYPTED = "it is encrypted and opens with a password only"
HYPHEN_AT_LINE_END = re.compile(r"(?<=\w)-\n(?=\w)")  # of a compound or a number: it stays, and the line end goes
LIGATURES = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})


def by_pdfium(data: bytes, max_pages: int) -> tuple[str | None, Iterator[str]]:
    """Title and pages."""
    import pypdfium2

    _refuse_cut_off(data)
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if error.err_code == PASSWORD_ERROR:
            raise Refused(ENCRYPTED) from error
        raise
    _refuse_page_count(len(document), max_pages)

    def pages() -> Iterator[str]:
        for number in range(len(document)):
            page = document[number]
            text = page.get_textpage()
            yield _paragraphs(text.get_text_range())
            text.close()
            page.close()

    return document.get_metadata_value("Title"), pages()


def by_pypdf(data: bytes, max_pages: int) -> tuple[str | None, Iterator[str]]:
    """Title and pages."""
    import pypdf

    _refuse_cut_off(data)
    document = pypdf.PdfReader(io.BytesIO(data))
    if document.is_encrypted and not document.decrypt(""):
        raise Refused(ENCRYPTED)
    _refuse_page_count(len(document.pages), max_pages)
    title = document.metadata.title if document.metadata else None
    return title, (_paragraphs(page.extract_text()) for page in document.pages)


def _paragraphs(page: str) -> str:
    """PDF knows lines, not paragraphs. U+FFFE is PDFium's for a hyphen that only divides a word at a line end."""
    lines = clean(page.replace("\ufffe", "").translate(LIGATURES)).split("\n")
    text = "\n".join(line.rstrip() for line in lines).strip("\n")
    return unwrap(HYPHEN_AT_LINE_END.sub("-", text))


def _refuse_cut_off(data: bytes) -> None:
    """Parsers repair a PDF that is cut off and return half of it for the whole. Its end mark is then missing, or stands
    before objects that belong to a later part.
    """
    end = data.rfind(b"%%EOF")
    if end < 0 or b"endobj" in data[end:]:
        raise Refused("it is cut off: the end mark of a PDF (%%EOF) is missing")


def _refuse_page_count(pages: int, limit: int) -> None:
    if pages == 0:
        raise Refused("it has no pages")
    if pages > limit:
        raise Refused(f"it has {pages} pages, the limit is {limit} (documents.max_pages)")
