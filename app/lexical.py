"""The words of texts as BM25 sparse vectors: what dense vectors miss, names, numbers and identifiers. Pure.

A chunk's vector holds the saturated term frequencies, a query's the plain ones; the store multiplies by the inverse
document frequency when it searches (Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond,
2009). Words, stop words, Snowball stems and hashes are those of Qdrant's own BM25, so its servers could make the same.
Identifiers count as a whole and by their parts: `retryCount`, `retry_count` and "retry count" find each other.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import Literal, NamedTuple

from qdrant_edge import Bm25, Bm25Config

Language = Literal[
    "arabic", "danish", "dutch", "english", "finnish", "french", "german", "greek", "hungarian", "italian", "norwegian",
    "portuguese", "romanian", "russian", "spanish", "swedish", "turkish",
]  # fmt: skip

K1, B = 1.2, 0.75
MEAN_WORDS = 60.0  # of a chunk of 512 characters with its title, stop words left out
PLAIN = 1e6  # so large a k1 leaves term frequencies as they are

WORD = re.compile(r"\w+")
PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[^\W\d_]+|\d+")  # of an identifier


class Words(NamedTuple):
    """A sparse vector: hashes of stems, ascending, and their weights."""

    indices: tuple[int, ...]
    values: tuple[float, ...]


def chunk_words(text: str, language: Language) -> Words:
    """The words that a chunk can be found by."""
    return _words(text, language, K1, B)


def query_words(text: str, language: Language) -> Words:
    """The words that a query asks for; one that it says twice counts twice."""
    return _words(text, language, PLAIN, 0.0)


def coverage(asked: Words, text: str, language: Language) -> float:
    """The share of a query's different words that a text holds."""
    held = set(chunk_words(text, language).indices)
    return sum(word in held for word in asked.indices) / len(asked.indices) if asked.indices else 0.0


def near_duplicates(texts: Sequence[str], language: Language, *, similarity: float) -> set[int]:
    """The numbers of texts that repeat an earlier one: their sets of words are at least so similar (Jaccard)."""
    kept: list[frozenset[int]] = []
    repeated: set[int] = set()
    for number, text in enumerate(texts):
        words = frozenset(chunk_words(text, language).indices)
        if words and any(len(words & other) >= similarity * len(words | other) for other in kept):
            repeated.add(number)
        else:
            kept.append(words)
    return repeated


@cache
def _model(language: Language, k1: float, b: float) -> Bm25:
    return Bm25(Bm25Config(k=k1, b=b, avg_len=MEAN_WORDS, language=language))


def _words(text: str, language: Language, k1: float, b: float) -> Words:
    found = _model(language, k1, b).embed_document(_with_parts(text))
    return Words(tuple(found.indices), tuple(found.values))


def _with_parts(text: str) -> str:
    """The text, and behind it the parts of its camelCase names and the snake_case ones in one word."""
    extra: list[str] = []
    for name in WORD.findall(text):
        joined = name.replace("_", "")
        if joined != name:  # the tokenizer parts it already
            extra.append(joined)
        elif not (name.islower() or name.isupper() or name.istitle() or name.isdecimal()):
            extra += PART.findall(name)
    return " ".join([text, *extra])
