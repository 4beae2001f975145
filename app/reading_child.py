"""Read one document, in a process of its own that may die of it. Started by app/reading.py, which see.

Standard input: a line of JSON, the job, then the bytes of the document until the end. Standard output: a line of JSON,
the reply, then the text in UTF-8. The reply is one of
    {"title": …, "page_starts": […], "spans": [[start, end], …], "sections": [[start, end], …]}
    {"refused": why}    the document is at fault
    {"failed": why}     the parser is at fault, another one may do better
This module and what it imports stay free of pydantic and asyncio: the start of the process is part of every upload.
"""

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from app.chunking import outline_of, spans
from app.reading_text import Refused, clean, clean_title, decode, first_heading

MIB = 2**20
NICENESS = 5  # answering goes before reading, which still has a third of its weight


def main() -> None:
    """Limits first, then the job."""
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a parser prints is no reply
    job = json.loads(sys.stdin.buffer.readline())
    limit_resources(job["seconds"], job["memory_bytes"])
    text = ""
    try:
        reply, text = read(job, sys.stdin.buffer.read())
    except Refused as error:
        reply = {"refused": str(error)}
    except MemoryError:
        reply = {"failed": f"it needs more memory than {job['memory_bytes'] // MIB} MiB"}
    except Exception as error:  # noqa: BLE001 – parsers raise whatever they like; the parent logs and decides
        reply = {"failed": f"{job['parser']} says: {type(error).__name__}: {clean(str(error))[:300].rstrip('.')}"}
    replies.write(json.dumps(reply).encode() + b"\n" + text.encode())
    replies.flush()
    os._exit(0)  # a parser's threads and finalizers have no say in when this ends


def limit_resources(seconds: float, memory_bytes: int) -> None:
    """The process kills itself at its limits, whether or not its parent lives."""
    with contextlib.suppress(OSError):  # Linux only: where the machine runs out of memory, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.nice(NICENESS)
    _limit(resource.RLIMIT_CPU, int(seconds) + 1)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    if sys.platform == "linux":  # macOS refuses or ignores it
        _limit(resource.RLIMIT_AS, memory_bytes)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def read(job: Mapping[str, Any], data: bytes) -> tuple[dict[str, Any], str]:
    """The reply and the text."""
    title, pages = extract(job, data)
    pieces: list[str] = []
    page_starts: list[int] = []
    length = 0
    for page in pages:
        page_starts.append(length)
        pieces.append(clean(page) + "\n")
        length += len(pieces[-1])
        if length > job["max_text_chars"] + 1:
            limit = job["max_text_chars"]
            raise Refused(f"its text has more than {limit} characters, the limit (documents.max_text_chars)")
    text = "".join(pieces).rstrip()
    if not text:
        scanned = " (a scan? images are not read, there is no OCR)" if job["parser"] in ("pdfium", "pypdf") else ""
        raise Refused(f"there is no text in it{scanned}")
    kind, chunk_chars = job["cut_as"], job["chunk_chars"]
    outlined = outline_of(text, kind=kind, chunk_chars=chunk_chars)
    found = spans(text, outlined, kind=kind, chunk_chars=chunk_chars, overlap_chars=job["overlap_chars"])
    reply = {"title": clean_title(title), "page_starts": page_starts}
    return reply | {"spans": list(found), "sections": outlined.sections}, text


def extract(job: Mapping[str, Any], data: bytes) -> tuple[str | None, Iterable[str]]:
    """Title and pages; a document without pages is one."""
    match job["parser"]:
        case "pdfium":
            from app.reading_pdf import by_pdfium

            return by_pdfium(data, job["max_pages"])
        case "pypdf":
            from app.reading_pdf import by_pypdf

            return by_pypdf(data, job["max_pages"])
        case "docx":
            from app.reading_docx import docx_text

            title, text = docx_text(data, job["max_unpacked_bytes"])
            return clean_title(title) or first_heading(text), (text,)
        case "html":
            from app.reading_html import html_text

            title, text = html_text(data, job["charset"])
            return clean_title(title) or first_heading(text), (text,)
        case _:
            text = decode(data, job["charset"])
            return first_heading(clean(text)) if job["kind"] == "markdown" else None, (text,)


if __name__ == "__main__":
    main()
