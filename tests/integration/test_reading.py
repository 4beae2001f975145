"""Files are read in child processes: hostile ones end there, and the reader goes on."""

import asyncio
import contextlib
import sys
from pathlib import Path

import psutil
import pytest

from app.errors import TooLarge, UnreadableDocument, UnsupportedMedia
from app.reading import Reader, ReadText
from app.settings import DocumentSettings
from tests import documents

pytestmark = pytest.mark.integration

MIB = 2**20
PROSE = "The wheat was cut on the third of August, and the barley in the week before it, because of the rain. "


@pytest.fixture
def reader() -> Reader:
    """With limits that a test can reach quickly."""
    return Reader(DocumentSettings(max_bytes=8 * MIB, max_pages=20, read_timeout_s=20, read_memory_bytes=512 * MIB))


async def test_a_pdf_is_read_with_its_pages(reader):
    """Title from its metadata, chunks with the page that they start on."""
    pages = [f"Page {number}. " + PROSE * 12 for number in (1, 2, 3)]
    read = await reader.read(documents.pdf(*pages, title="Harvest"), name="report.pdf", media_type="application/pdf")
    assert (read.title, read.media_type, read.kind) == ("Harvest", "application/pdf", "text")
    assert [read.text[start:].split(".")[0] for start in read.page_starts] == ["Page 1", "Page 2", "Page 3"]
    assert all(read.text[chunk.start : chunk.end] == chunk.text for chunk in read.chunks)
    assert [chunk.page for chunk in read.chunks] == sorted(chunk.page or 0 for chunk in read.chunks)
    assert {chunk.page for chunk in read.chunks} == {1, 2, 3}
    assert read.chunks[0].text.endswith(".")


async def test_a_real_form_is_read_in_whole_sentences():
    """The W-2 of 2007: title and pages; wrapped lines are joined, and a number that a line end divided."""
    read = await Reader(DocumentSettings()).read(documents.real_pdf("fw2.pdf"), name="fw2.pdf")
    assert (read.title, len(read.page_starts)) == ("2007 Form W-2", 11)
    assert "You may also print out copies for filing with state or local governments" in read.text
    assert "1-800-TAX-FORM (1-800-829-3676)" in read.text
    moving = next(chunk for chunk in read.chunks if "Excludable moving expense reimbursements paid" in chunk.text)
    assert moving.page == 9


async def test_a_real_manual_is_read_whole():
    """122 pages, and a placeholder for a title."""
    read = await Reader(DocumentSettings()).read(documents.real_pdf("rml-reference.pdf"), name="rml-reference.pdf")
    assert (read.title, len(read.page_starts)) == ("rml-reference.pdf", 122)
    assert {chunk.page for chunk in read.chunks} == set(range(1, 122))  # the last page has two lines, in its chunk
    assert max(len(chunk.text) for chunk in read.chunks) <= 512


@pytest.mark.parametrize(
    ("name", "data", "title", "kind"),
    [
        ("report.docx", documents.word(title=""), "Harvest report", "markdown"),
        ("page.html", b"<html><title>A page</title><p>Text", "A page", "markdown"),
        ("notes.md", b"# My notes\n\nText", "My notes", "markdown"),
        ("C:\\fakepath\\notes.txt", b"Text", "notes.txt", "text"),
        ("../../etc/notes\0.txt", b"Text", "notes.txt", "text"),
        ("x" * 300 + ".py", b"x = 1", "…" + "x" * 196 + ".py", "python"),
        ("main.py", b"# not a heading\nx = 1\n", "main.py", "python"),
        ("data.json", b'{"a": ' + b"[" * 100_000, "data.json", "text"),  # read, not parsed
    ],
)
async def test_each_kind_has_a_title_and_a_way_to_be_cut(reader, name, data, title, kind):
    """The title comes from the metadata, else the first heading, else the file's name without its folders."""
    read = await reader.read(data, name=name)
    assert (read.title, read.kind, read.page_starts) == (title, kind, ())
    assert read.chunks
    assert read.chunks[0].page is None


HOSTILE = [
    ("empty.txt", b"", UnreadableDocument, "it is empty"),
    ("blank.txt", b" \n\t\n", UnreadableDocument, "there is no text in it"),
    ("huge.txt", b"x" * (8 * MIB + 1), TooLarge, "8388609 bytes, the limit is 8388608"),
    ("scan.pdf", documents.pdf("", ""), UnreadableDocument, "there is no OCR"),
    ("encrypted.pdf", documents.pdf("x", password="secret"), UnreadableDocument, "it is encrypted"),
    ("truncated.pdf", documents.pdf(PROSE)[:-300], UnreadableDocument, "cut off"),
    ("long.pdf", documents.pdf(*["x"] * 21), UnreadableDocument, "it has 21 pages, the limit is 20"),
    ("garbage.pdf", b"%PDF-1.7\n" + bytes(range(256)) * 99 + b"%%EOF", UnreadableDocument, "Error"),
    ("bomb.pdf", documents.flate_bomb_pdf(600 * MIB), UnreadableDocument, "crashed the parser"),
    ("bomb.docx", documents.raw_docx(" " * (100 * MIB)), UnreadableDocument, "unpacks to 100 MiB, the limit is 64 MiB"),
    ("bad.txt", "Öl und Größe".encode() + b"\xff\xfe", UnreadableDocument, "not valid UTF-8"),
    ("program.txt", Path(sys.executable).read_bytes()[: 4 * MIB], UnsupportedMedia, "program"),
    ("paper.docx", documents.pdf("x"), UnsupportedMedia, "a PDF file named as a Word document"),
]


@pytest.mark.parametrize(("name", "data", "error", "reason"), HOSTILE, ids=[row[0] for row in HOSTILE])
async def test_a_hostile_file_is_refused_by_what_is_wrong_with_it(reader, name, data, error, reason):
    """A 4xx with the reason, no growth of this process, and the next file is read."""
    before = psutil.Process().memory_info().rss
    with pytest.raises(error, match=reason) as caught:
        await reader.read(data, name=name)
    assert 400 <= caught.value.status < 500
    assert psutil.Process().memory_info().rss - before < 64 * MIB
    assert (await reader.read(b"Hello", name="next.txt")).text == "Hello"


async def test_two_hundred_thousand_nested_tags_are_read(reader):
    """A page that stops other parsers is no more than its text."""
    page = b"<body>" + b"<div>" * 200_000 + b"deep" + b"</div>" * 200_000 + b"<p>end"
    assert (await reader.read(page, name="deep.html")).text == "deep\n\nend"


async def test_five_megabytes_on_one_line_are_read(reader):
    """The splitter alone would take minutes."""
    read = await reader.read(PROSE.encode() * 50_000, name="line.txt")
    assert len(read.chunks) == 10_000


async def test_time_and_memory_run_out_in_the_child_only():
    """It is ended at its limits, and the message names them."""
    data = PROSE.encode() * 300_000  # seconds of work on any CPU
    with pytest.raises(UnreadableDocument, match=r"it took over 0\.[12]"):
        await Reader(DocumentSettings(read_timeout_s=0.2)).read(data, name="line.txt")
    wide = "😀".encode() + b"a" * (31 * MIB)  # Python holds each character in four bytes
    with pytest.raises(UnreadableDocument, match="it needs more memory than 256 MiB"):
        await Reader(DocumentSettings(read_memory_bytes=256 * MIB)).read(wide, name="wide.txt")


def readers() -> list[psutil.Process]:
    """The processes that read for us."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            if "app.reading_child" in " ".join(child.cmdline()):
                found.append(child)
    return found


async def test_a_departed_uploader_takes_the_child_along():
    """Cancelling the read kills the process that works for it."""
    reading = asyncio.create_task(Reader(DocumentSettings()).read(PROSE.encode() * 50_000, name="line.txt"))
    while not (children := readers()):
        await asyncio.wait([reading], timeout=0.005)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not any(child.is_running() for child in children)


async def test_only_so_many_files_are_read_at_a_time():
    """The others wait their turn; all are read."""
    reader = Reader(DocumentSettings(readers=2))
    reads = [asyncio.create_task(reader.read(PROSE.encode() * 500, name="a.txt")) for _ in range(5)]
    most = 0
    while not all(read.done() for read in reads):
        most = max(most, len(readers()))
        await asyncio.wait(reads, timeout=0.005)
    assert most == 2
    assert len({(await read).text for read in reads}) == 1


async def test_no_error_of_a_reader_is_ours(reader):
    """Bytes that are no document, under every name: read or refused, never a 500."""
    names = ("a.pdf", "a.docx", "a.html", "a")
    blobs = (b"%PDF-1.4 %%EOF", b"PK\x03\x04word/document", b"<html", b"\xff\xfe\x00", b"\xef\xbb\xbf", b"\x80")
    reads = [reader.read(data, name=name) for name in names for data in blobs]
    for result in await asyncio.gather(*reads, return_exceptions=True):
        assert isinstance(result, ReadText | UnsupportedMedia | UnreadableDocument)
