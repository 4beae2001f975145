"""What the parsers make of each format, in this process; tests/integration/test_reading.py runs them in their own."""

import pytest

from app.reading_docx import docx_text
from app.reading_html import html_text
from app.reading_pdf import by_pdfium, by_pypdf
from app.reading_text import Refused, clean, clean_title, decode, first_heading
from tests import documents


@pytest.mark.parametrize(
    ("data", "charset", "text"),
    [
        ("Größe".encode(), None, "Größe"),
        ("Größe".encode("utf-8-sig"), None, "Größe"),
        ("Größe".encode("utf-16"), None, "Größe"),
        ("Größe".encode("utf-32"), None, "Größe"),
        ("Größe".encode("latin-1"), None, "Größe"),
        ("“Größe”".encode("cp1252"), None, "“Größe”"),
        ("Ελλάδα".encode("iso8859-7"), "iso-8859-7", "Ελλάδα"),
        ("Größe".encode(), "no-such-charset", "Größe"),
        (b"plain", "zlib", "plain"),  # a codec of Python's that is no text encoding
    ],
)
def test_text_is_decoded_by_mark_then_declaration_then_utf8_then_latin1(data, charset, text):
    """A byte order mark wins over a declared charset, which wins over the guess."""
    assert decode(data, charset) == text


def test_broken_utf8_is_refused_and_not_taken_for_latin1():
    """One bad byte among good UTF-8 would turn every umlaut of the file into two wrong characters."""
    with pytest.raises(Refused, match="not valid UTF-8: byte 0xff at 14"):
        decode("Größe, Öl, ä".encode()[:14] + b"\xff")


def test_cleaning_leaves_what_every_store_takes():
    """NUL, other controls and lone surrogates go; tab, line ends and every letter stay."""
    assert clean("a\0b\x1b[1m\tc\r\nd\re\x0cf\u2028g\ud800h\ufeff") == "ab[1m\tc\nd\ne\nf\ng\ufffdh"


@pytest.mark.parametrize(
    ("title", "cleaned"),
    [
        (" A\r\n title\0 ", "A title"),
        ("untitled", None),
        ("(anonymous)", None),  # ReportLab
        ("", None),
        (None, None),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_titles_are_one_short_line(title, cleaned):
    """Whatever stands in a document's metadata."""
    assert clean_title(title) == cleaned


def test_the_first_heading_of_markdown_is_its_title():
    """Without its marks."""
    assert first_heading("intro\n\n## The *plan* ##\n# Later") == "The *plan*"
    assert first_heading("#hashtag, no heading") is None
    assert first_heading("# " + " " * 1_000_000 + "\n#\n# #") is None  # and takes no time


@pytest.mark.parametrize("parse", [by_pdfium, by_pypdf])
def test_a_pdf_is_read_page_by_page(parse):
    """Both parsers give the same title and pages; lines that only wrap are joined."""
    prose = "The wheat was cut on the third of August, and the barley in the week before it, because of the rain. "
    title, pages = parse(documents.pdf(prose * 3, "", "Last page.", title="Harvest"), max_pages=3)
    assert title == "Harvest"
    assert [" ".join(page.split()) for page in pages] == [(prose * 3).strip(), "", "Last page."]


@pytest.mark.parametrize("parse", [by_pdfium, by_pypdf])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (documents.pdf("x", password="secret"), "encrypted"),
        (documents.pdf("x", "y"), "it has 2 pages, the limit is 1"),
        (documents.pdf("x")[:-200], "cut off"),
        (documents.pdf("x") + b"9 0 obj endobj", "cut off"),  # as an update that was cut off
    ],
)
def test_a_pdf_that_cannot_be_read_whole_is_refused(parse, data, reason):
    """Half a document is not read for the whole."""
    with pytest.raises(Refused, match=reason):
        parse(data, max_pages=1)


def test_a_docx_becomes_markdown_in_its_own_order():
    """Headings, paragraphs, tables and lists, as python-docx wrote them."""
    title, text = docx_text(documents.word(title="Harvest 2026"), 2**20)
    assert title == "Harvest 2026"
    assert text == (
        "# Harvest report\n\nThe wheat was cut on 3 August.\n\n"
        "Field | Tons\nNorth | 41\n\n## Outlook\n\n- Sow rye\n- Mend the fence\n"
    )


RUN = "<w:r><w:t>{}</w:t></w:r>"
PARAGRAPH = f"<w:p>{RUN}</w:p>"
CELL = f"<w:tc>{PARAGRAPH}</w:tc>"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (
            f"<w:p><w:ins>{RUN.format('kept')}</w:ins><w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>",
            "kept",
        ),
        (f"<w:sdt><w:sdtContent>{PARAGRAPH.format('in a control')}</w:sdtContent></w:sdt>", "in a control"),
        ("<w:p><w:pPr><w:tabs><w:tab/></w:tabs></w:pPr><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t></w:r></w:p>", "a\tb"),
        ("<w:p><w:r><w:t>a</w:t><w:br/><w:t>b</w:t></w:r></w:p>", "a\nb"),
        ("<w:p><w:r><w:instrText>PAGE</w:instrText><w:t>seen</w:t></w:r></w:p>", "seen"),
        (
            (
                f"<w:tbl><w:tr><w:tc>{PARAGRAPH.format('a')}<w:tbl><w:tr>{CELL.format('b')}{CELL.format('c')}</w:tr>"
                f"</w:tbl></w:tc>{CELL.format('d')}</w:tr></w:tbl>"
            ),
            "a b | c | d",
        ),
    ],
)
def test_a_docx_is_read_as_word_shows_it(body, text):
    """With tracked insertions and without deletions, fields or tab stops; a table in a table is one cell."""
    assert docx_text(documents.raw_docx(documents.BODY.format(body)), 2**20)[1].rstrip("\n") == text


def test_foot_notes_follow_the_text_of_a_docx():
    """They are text, too."""
    data = documents.archive(
        {
            "word/document.xml": documents.BODY.format(PARAGRAPH.format("Text.")),
            "word/footnotes.xml": documents.BODY.format(PARAGRAPH.format("Note.")),
        }
    )
    assert docx_text(data, 2**20)[1] == "Text.\n\nNote.\n\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (documents.word()[:-100], "damaged"),
        (documents.archive({"other.xml": "<x/>"}), "no word/document.xml"),
        (documents.raw_docx(" " * 2**21), "it unpacks to 2 MiB, the limit is 1 MiB"),
        (documents.raw_docx("<a><b></a>"), "no valid XML"),
        (documents.raw_docx("<a>" * 100_000), "no valid XML"),
    ],
)
def test_a_broken_docx_is_refused(data, reason):
    """By what is wrong with it."""
    with pytest.raises(Refused, match=reason):
        docx_text(data, 2**20)


def test_entities_of_a_docx_are_not_expanded():
    """Neither a file of this machine nor a billion laughs comes into the text."""
    reference = documents.BODY.format(PARAGRAPH.format("a&x;b"))
    outside = '<!DOCTYPE x [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + reference
    assert docx_text(documents.raw_docx(outside), 2**20)[1] == "ab\n\n"
    laughs = "".join(f'<!ENTITY x{n} "{f"&x{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<!DOCTYPE x [<!ENTITY x0 "ha">{laughs}<!ENTITY x "&x9;">]>' + reference
    with pytest.raises(Refused, match="amplification"):
        docx_text(documents.raw_docx(bomb), 2**20)


def test_html_becomes_markdown_without_its_machinery():
    """Headings, paragraphs, lists, tables and code; no scripts, styles or navigation."""
    page = """<html><head><title>The &amp; title</title><style>p {}</style></head><body><nav>Home</nav>
        <h1>Harvest</h1><p>The <b>wheat</b>
        was cut.<script>evil()</script></p><ul><li>rye<li><p>oats</p></ul>
        <table><tr><th>Field<th>Tons<tr><td>North<td>41</table><pre>if x:\n    y</pre></body></html>"""
    title, text = html_text(page.encode())
    assert title == "The & title"
    assert text == ("# Harvest\n\nThe wheat was cut.\n\n- rye\n- oats\n\nField | Tons\nNorth | 41\n\nif x:\n    y")


@pytest.mark.parametrize(
    ("data", "charset"),
    [
        ('<meta charset="iso-8859-7"><p>Ελλάδα'.encode("iso8859-7"), None),
        ("<p>Ελλάδα".encode("iso8859-7"), "iso-8859-7"),
        ("<p>Ελλάδα".encode(), None),
        (b"<p>&Epsilon;&lambda;&lambda;&#940;&delta;&alpha;", None),
    ],
)
def test_html_is_decoded_as_http_or_the_page_says(data, charset):
    """And as UTF-8 where neither does."""
    assert html_text(data, charset)[1] == "Ελλάδα"
