"""Documents that the demo model learns from: docstrings of permissively licensed Python code, cut into sentences.

Only code whose own metadata name a permissive licence is read. No network, no guessing: what states no such licence
is left out. `manifest` says what was read and under which terms.
"""

import ast
import hashlib
import inspect
import json
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import NamedTuple

PERMISSIVE = (
    ("Apache-2.0", re.compile(r"apache", re.IGNORECASE)),
    ("MIT", re.compile(r"\bMIT(-0|-CMU)?\b|\bHPND\b")),
    ("BSD", re.compile(r"\bBSD\b|BSD-[23]-Clause|\b[023]-?clause", re.IGNORECASE)),
    ("ISC", re.compile(r"\bISC\b")),
    ("PSF-2.0", re.compile(r"\bPSF\b|Python Software Foundation", re.IGNORECASE)),
)
COPYLEFT = re.compile(
    r"GPL|GNU|MPL|Mozilla|EUPL|CDDL|\bCC-|Creative Commons|proprietary|NVIDIA|commercial", re.IGNORECASE
)
SKIPPED_FOLDERS = frozenset({"test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "_vendor", "vendored"})
SKIPPED_FOLDERS_STDLIB = SKIPPED_FOLDERS | {"site-packages"}
BREAK = re.compile(r"(?<=[.!?])[ \n]+(?=[A-Z\"'(`\[])|\n[ \t]*\n\s*|\n(?=[ \t]*(?:[-*•]|\d+[.)])[ \t])|\n(?=\s{2,})")
WORD = re.compile(r"[^\W_]+", re.UNICODE)
PROSE = re.compile(r"[A-Z`'\"][^\n>]*(?:\n[^\n>]+){0,3}[.!?]", re.DOTALL)
HELD_OUT_SHARE = 20  # one document in twenty is never trained on


class Span(NamedTuple):
    """Characters start to end of a text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Document:
    """A text with its sentences. clean: which of the spans may be asked about and quoted."""

    source: str
    title: str
    text: str
    spans: tuple[Span, ...]
    clean: tuple[int, ...]

    def sentence(self, number: int) -> str:
        span = self.spans[number]
        return self.text[span.start : span.end]


def licence(distribution: Distribution) -> str | None:
    """The permissive licence that a package's metadata name, or None where they name none, or another one too."""
    metadata = distribution.metadata
    expression = (metadata.get_all("License-Expression") or [""])[0]
    stated = [expression, (metadata.get_all("License") or [""])[0][:120]]
    stated += [line for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")]
    text = " ; ".join(stated)
    if COPYLEFT.search(text):
        return None
    return next((expression or name for name, pattern in PERMISSIVE if pattern.search(text)), None)


def sources() -> Iterator[tuple[str, str, str, list[Path]]]:
    """(name, version, licence, Python files) of everything here that may be read, the standard library first."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(
        path for path in root.rglob("*.py") if not SKIPPED_FOLDERS_STDLIB & set(path.relative_to(root).parts)
    )
    yield "python", sysconfig.get_python_version(), "PSF-2.0", files
    for distribution in sorted(distributions(), key=lambda d: d.metadata["Name"].lower()):
        terms = licence(distribution)
        if terms is None:
            continue
        listed = [
            file for file in distribution.files or [] if file.suffix == ".py" and not SKIPPED_FOLDERS & set(file.parts)
        ]
        if listed:
            yield (
                distribution.metadata["Name"],
                distribution.version,
                terms,
                sorted(Path(str(distribution.locate_file(file))) for file in listed),
            )


def docstrings(path: Path) -> Iterator[str]:
    """The cleaned docstrings of a Python file, in order. A file that does not parse has none."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError, FileNotFoundError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=True)
            if text:
                yield text


def spans(text: str) -> tuple[Span, ...]:
    """The sentences, headings and list items of a text, in order; what separates them belongs to none."""
    found, start = [], 0
    for gap in BREAK.finditer(text):
        found.append(Span(start, gap.start()))
        start = gap.end()
    found.append(Span(start, len(text)))
    trimmed = (
        Span(span.start + len(piece) - len(piece.lstrip()), span.start + len(piece.rstrip()))
        for span in found
        for piece in [text[span.start : span.end]]
    )
    return tuple(span for span in trimmed if span.end > span.start)


def is_clean(sentence: str) -> bool:
    """Whether this is a sentence of prose that someone could ask about."""
    words = WORD.findall(sentence)
    letters = sum(character.isalpha() or character.isspace() for character in sentence)
    return (
        40 <= len(sentence) <= 260
        and len(words) >= 7
        and letters >= 0.86 * len(sentence)
        and PROSE.fullmatch(sentence) is not None
        and '"' not in sentence
    )


def document(source: str, title: str, text: str) -> Document:
    """Cut a text into sentences."""
    found = spans(text)
    clean = tuple(number for number, span in enumerate(found) if is_clean(text[span.start : span.end]))
    return Document(source, title, text, found, clean)


def collect(paths: Iterable[Path], *, minimum: int = 120) -> Iterator[str]:
    """One text per file: its docstrings, joined by blank lines. minimum: characters, under which a file is left out."""
    for path in paths:
        text = "\n\n".join(dict.fromkeys(docstrings(path)))
        if len(text) >= minimum and text.isascii():
            yield inspect.cleandoc(text)


def held_out(text: str) -> bool:
    """Whether a document is kept from training. Decided by its own bytes, so that every run agrees."""
    return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT_SHARE == 0


def load(path: Path) -> tuple[list[Document], list[Document]]:
    """(documents to train on, held-out documents). A held-out sentence that is in training text too is never asked."""
    documents = [document(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    documents = [found for found in documents if len(found.spans) > 2]
    trained = [found for found in documents if not held_out(found.text)]
    seen = {found.sentence(number) for found in trained for number in found.clean}
    kept = [
        Document(
            found.source,
            found.title,
            found.text,
            found.spans,
            tuple(number for number in found.clean if found.sentence(number) not in seen),
        )
        for found in documents
        if held_out(found.text)
    ]
    return trained, kept


def rarity(documents: Sequence[Document]) -> dict[str, int]:
    """In how many sentences each lower-case word occurs."""
    counts: dict[str, int] = {}
    for found in documents:
        for number in range(len(found.spans)):
            for word in set(WORD.findall(found.sentence(number).lower())):
                counts[word] = counts.get(word, 0) + 1
    return counts


def file_title(rng: random.Random, source: str, path: Path) -> str:
    """A name such as a person's document might have."""
    stem = path.stem if path.stem != "__init__" else path.parent.name
    return rng.choice([f"{stem}.md", f"{stem}.txt", f"{stem}.pdf", f"{source}/{path.name}", stem.replace("_", " ")])
