"""Makes the documents that tests read: a PDF, a DOCX, and the hostile ones."""

import importlib.metadata
import io
import zipfile
import zlib
from pathlib import Path

import docx
from fpdf import FPDF

BODY = '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>{}</w:body></w:document>'


def pdf(*pages: str, title: str | None = None, password: str | None = None) -> bytes:
    """A page for each text; one without text has a drawing only."""
    document = FPDF()
    document.set_font("Helvetica", size=12)
    if title:
        document.set_title(title)
    if password:
        document.set_encryption(owner_password="owner", user_password=password)
    for page in pages:
        document.add_page()
        if page:
            document.multi_cell(0, text=page)
        else:
            document.rect(20, 20, 50, 50)
    return bytes(document.output())


def flate_bomb_pdf(unpacked: int) -> bytes:
    """One page whose content is deflated spaces. unpacked: bytes."""
    packer = zlib.compressobj(9)
    block = b" " * 2**20
    content = b"".join(packer.compress(block) for _ in range(unpacked // 2**20)) + packer.flush()
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]/Contents 4 0 R/Resources<<>>>>",
        b"<</Length %d/Filter/FlateDecode>>stream\n%s\nendstream" % (len(content), content),
    ]
    out = io.BytesIO()
    out.write(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(out.tell())
        out.write(b"%d 0 obj%s endobj\n" % (number, body))
    table = out.tell()
    out.write(b"xref\n0 5\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % offset for offset in offsets))
    out.write(b"trailer<</Size 5/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % table)
    return out.getvalue()


def word(*, title: str = "") -> bytes:
    """A DOCX as python-docx writes it: headings, a list, a table between paragraphs."""
    document = docx.Document()
    document.core_properties.title = title
    document.add_heading("Harvest report", level=0)
    document.add_paragraph("The wheat was cut on 3 August.")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip((c for row in table.rows for c in row.cells), ("Field", "Tons", "North", "41"), strict=True):
        cell.text = text
    document.add_heading("Outlook", level=2)
    document.add_paragraph("Sow rye", style="List Bullet")
    document.add_paragraph("Mend the fence", style="List Bullet")
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def raw_docx(document_xml: str | bytes, **parts: bytes) -> bytes:
    """A DOCX of hand-written parts; what is not needed for reading is left out."""
    return archive({"word/document.xml": document_xml, **parts})


def archive(members: dict[str, str | bytes]) -> bytes:
    """A ZIP archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return out.getvalue()


def real_pdf(name: str) -> bytes:
    """A PDF that nobody here made, out of the package z3c.rml, which is locked for these alone.

    fw2.pdf: the form W-2 of 2007 by the United States' Internal Revenue Service, 11 pages, Acrobat Distiller.
    rml-reference.pdf: a reference manual, 122 pages, ReportLab.
    """
    found = [file for file in importlib.metadata.files("z3c.rml") or () if file.name == name]
    return Path(str(found[0].locate())).read_bytes()
