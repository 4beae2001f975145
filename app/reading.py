"""Read uploaded files: bytes in, text and chunks out. Each file is parsed in a child process with limits.

No parser survives every hostile file, so the child may run out of time or memory or crash, and only the upload fails.
It gets a clean environment (no secrets), takes its limits before it sees the file, answers over a pipe, and ends with
the request that waits for it. Memory is not limited on macOS, which does not enforce it.
"""

import asyncio
import contextlib
import json
import logging
import re
import signal
import sys
import time
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import ValidationError

from app.chunking import Kind, chunks_at, cut_as
from app.errors import TooLarge, UnreadableDocument
from app.media import Format, recognise
from app.messages import Chunk, Strict
from app.reading_text import file_name
from app.settings import DocumentSettings

UNPACKED_PER_BYTE = 8  # a DOCX may unpack to so many times documents.max_bytes
START = "import sys; sys.path[:] = sys.argv[1:]; from app.reading_child import main; main()"
PARSERS = {"pdf": ("pdfium", "pypdf")}  # in the order in which they are tried; the others have one of their own name
OUT_OF_TIME = (signal.SIGALRM, signal.SIGXCPU, signal.SIGKILL)  # as the child's limits, or we, end it
GRACE_S = 2.0  # the child ends itself; this is for one that cannot
REPLY_BYTES_PER_CHAR = 16  # of text, UTF-8, spans and sections together
CHARSET = re.compile(r";\s*charset=[\"']?([\w.:-]+)", re.IGNORECASE)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReadText:
    """A document, read and cut. page_starts: where each page begins in the text; empty where there are no pages."""

    text: str
    title: str
    kind: Kind
    media_type: str
    page_starts: tuple[int, ...]
    chunks: tuple[Chunk, ...]


class Reply(Strict):
    """What the child says of a document, see app/reading_child.py."""

    title: str | None = None
    page_starts: tuple[int, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    sections: tuple[tuple[int, int], ...] = ()
    refused: str | None = None
    failed: str | None = None


class Outcome(NamedTuple):
    """How a child ended. code: its exit status, negative for a signal; output: as far as it got."""

    code: int
    output: bytes


class Reader:
    """Reads documents, at most `limits.readers` at a time; the others wait."""

    def __init__(self, limits: DocumentSettings) -> None:
        self._limits = limits
        self._turns = asyncio.Semaphore(limits.readers)

    async def read(
        self, data: bytes, *, name: str, media_type: str | None = None, sizes: tuple[int, int] | None = None
    ) -> ReadText:
        """Read one file. name: as the sender calls it; media_type: as the sender declares it; sizes: of a chunk and of
        the overlap of two, in characters, None as the settings say.

        Raises TooLarge, UnsupportedMedia (not a kind that we read, or not what it is called) and UnreadableDocument.
        """
        name, limits = file_name(name), self._limits
        if len(data) > limits.max_bytes:
            raise TooLarge(f"'{name}'", len(data), limits.max_bytes, "bytes", "documents.max_bytes")
        if not data:
            raise UnreadableDocument(name, "it is empty")
        found = recognise(name, data, media_type)
        charset = CHARSET.search(media_type or "")
        async with self._turns:
            reply, text = await self._parse(data, name, found, charset[1] if charset else None, sizes)
        return ReadText(
            text=text,
            title=reply.title or name or "untitled",
            kind=found.kind,
            media_type=found.media_type,
            page_starts=reply.page_starts if found.parser == "pdf" else (),
            chunks=chunks_at(text, reply.spans, reply.sections, reply.page_starts if found.parser == "pdf" else ()),
        )

    async def _parse(
        self, data: bytes, name: str, found: Format, charset: str | None, sizes: tuple[int, int] | None
    ) -> tuple[Reply, str]:
        """Try the parsers in turn. One that has another behind it gets half of the time that is left."""
        ends_at = time.monotonic() + self._limits.read_timeout_s
        parsers = PARSERS.get(found.parser, (found.parser,))
        reasons: list[str] = []
        for number, parser in enumerate(parsers, start=1):
            left = max(0.1, ends_at - time.monotonic())
            seconds = left if number == len(parsers) else left / 2
            job = self._job(parser, found.kind, charset, seconds, sizes)
            reply, text = _understood(await self._run(job, data, seconds), seconds)
            if reply.refused is None and reply.failed is None:
                return reply, text
            reasons.append(reply.refused or reply.failed or "")
            if reply.refused is not None:
                break
            logger.warning("Reading a document (%s, %d bytes) by %s: %s", found.label, len(data), parser, reply.failed)
        raise UnreadableDocument(name, "; then ".join(reasons))

    def _job(
        self, parser: str, kind: Kind, charset: str | None, seconds: float, sizes: tuple[int, int] | None
    ) -> bytes:
        limits = self._limits
        chunk_chars, overlap_chars = sizes or (limits.chunk_chars, limits.overlap_chars)
        job = {
            "parser": parser,
            "kind": kind,
            "cut_as": cut_as(kind, limits.chunking),
            "charset": charset,
            "seconds": seconds,
            "memory_bytes": limits.read_memory_bytes,
            "chunk_chars": chunk_chars,
            "overlap_chars": overlap_chars,
            "max_pages": limits.max_pages,
            "max_text_chars": limits.max_text_chars,
            "max_unpacked_bytes": UNPACKED_PER_BYTE * limits.max_bytes,
        }
        return json.dumps(job).encode() + b"\n"

    async def _run(self, job: bytes, data: bytes, seconds: float) -> Outcome:
        """Run a child to its end. One that overstays, says too much, or whose waiter leaves, is killed."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", START, *filter(None, sys.path)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={},
            start_new_session=True,  # a Ctrl-C in the terminal is not for it
        )
        assert process.stdin is not None
        assert process.stdout is not None
        feeding = asyncio.create_task(_feed(process.stdin, job, data))
        try:
            async with asyncio.timeout(seconds + GRACE_S):
                output = await _read_up_to(process.stdout, REPLY_BYTES_PER_CHAR * self._limits.max_text_chars + 2**20)
                return Outcome(await process.wait(), output)
        except TimeoutError:
            return Outcome(-signal.SIGALRM, b"")
        finally:
            feeding.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def _feed(pipe: asyncio.StreamWriter, job: bytes, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # a child that died says so by its exit status
        pipe.write(job)
        pipe.write(data)
        await pipe.drain()
        pipe.close()
        await pipe.wait_closed()


async def _read_up_to(pipe: asyncio.StreamReader, limit: int) -> bytes:
    """All that comes, until the end or the limit."""
    pieces: list[bytes] = []
    size = 0
    while size <= limit and (piece := await pipe.read(2**18)):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def _understood(outcome: Outcome, seconds: float) -> tuple[Reply, str]:
    """Reply and text of a child, or what became of it."""
    if -outcome.code in OUT_OF_TIME:
        return Reply(failed=f"it took over {seconds:.3g} s"), ""
    if outcome.code < 0:
        return Reply(failed=f"it crashed the parser ({signal.Signals(-outcome.code).name})"), ""
    head, _, text = outcome.output.partition(b"\n")
    try:
        return Reply.model_validate_json(head), text.decode()
    except (ValidationError, UnicodeDecodeError):
        return Reply(failed=f"its parser ended without a result (exit status {outcome.code})"), ""
