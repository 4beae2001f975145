"""What reading a document costs, and what reading it in a process of its own adds.

    python -m benchmarks.reading [--rounds 5] [FILE.pdf]

Without a file: the 122-page manual that the package z3c.rml of the development dependencies carries. The same PDF is
read by PDFium in this process (text only) and by our reader (a new process, text, lines joined, chunks), in turns;
then the smallest text, which is the price of the process. Best and median of the rounds.
"""

import argparse
import asyncio
import importlib.metadata
import resource
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pypdfium2

from app.reading import Reader
from app.settings import DocumentSettings


def manual() -> Path:
    """The PDF for those who bring none."""
    found = [file for file in importlib.metadata.files("z3c.rml") or () if file.name == "rml-reference.pdf"]
    return Path(str(found[0].locate()))


def by_pdfium(data: bytes) -> int:
    """Characters."""
    document = pypdfium2.PdfDocument(data)
    return sum(len(document[number].get_textpage().get_text_range()) for number in range(len(document)))


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Seconds."""
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def measure(name: str, data: bytes, rounds: int) -> None:
    """Print a line for each way of reading."""
    reader = Reader(DocumentSettings())
    pages = len(pypdfium2.PdfDocument(data))

    async def alone() -> None:
        by_pdfium(data)

    async def ours() -> None:
        await reader.read(data, name=name)

    async def least() -> None:
        await reader.read(b"Hello.", name="hello.txt")

    seconds: dict[str, list[float]] = {"PDFium alone": [], "our reader": [], "a text of one line": []}
    for _ in range(rounds):
        for times, work in zip(seconds.values(), (alone, ours, least), strict=True):
            times.append(await timed(work))
    for way, times in seconds.items():
        best, median = min(times), statistics.median(times)
        speed = "" if way.startswith("a text") else f", {pages / best:.0f} pages/s at best"
        print(f"{way:20} {best * 1000:6.0f} ms best, {median * 1000:6.0f} ms median{speed}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"peak memory of a reading process: {peak:.0f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    path = arguments.file or manual()
    asyncio.run(measure(path.name, path.read_bytes(), arguments.rounds))
