"""Texts that are nearly the same, found by MinHash (Broder 1997) and locality-sensitive hashing. Deterministic.

Similarity is Jaccard's, of the sets of three words in a row, estimated from 128 hashes: its standard error is at most
0.045, at 0.9 it is 0.027. A sketch (the hashes, 512 bytes) stands for a text where the text itself must not be kept.
"""

import re
from typing import NewType

import numpy as np
from datasketch import MinHash, MinHashLSH

WORD = re.compile(r"\w+|[^\w\s]")
GRAM, HASHES, SEED, SCHEME = 3, 128, 1, "affine32"

Sketch = NewType("Sketch", bytes)


def sketch(text: str) -> Sketch:
    """The hashes of a text's word 3-grams, lower case; of a shorter one those of the whole."""
    words = WORD.findall(text.lower())
    grams = {" ".join(words[i : i + GRAM]) for i in range(max(1, len(words) - GRAM + 1))}
    made = MinHash(num_perm=HASHES, seed=SEED, scheme=SCHEME)
    made.update_batch([gram.encode() for gram in sorted(grams)])
    return Sketch(made.hashvalues.astype(np.uint32).tobytes())


def similarity(one: Sketch, other: Sketch) -> float:
    """Jaccard's, estimated: 1 for the same text."""
    return float(np.mean(np.frombuffer(one, np.uint32) == np.frombuffer(other, np.uint32)))


class Near:
    """Sketches by name, asked for those like another. threshold: of similarity, itself included."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._index = MinHashLSH(threshold=threshold, num_perm=HASHES, weights=(0.1, 0.9))  # misses are dearer
        self._sketches: list[tuple[str, Sketch]] = []

    def like(self, wanted: Sketch) -> list[str]:
        """The names under which something is nearly this, in the order in which they were added; may repeat."""
        found = sorted(self._index.query(_hashed(wanted)))
        return [name for name, kept in map(self._sketches.__getitem__, found) if self._is_near(kept, wanted)]

    def add(self, name: str, made: Sketch) -> None:
        """Remember a sketch. A name may have several."""
        self._index.insert(len(self._sketches), _hashed(made))
        self._sketches.append((name, made))

    def _is_near(self, one: Sketch, other: Sketch) -> bool:
        return similarity(one, other) >= self._threshold


def _hashed(made: Sketch) -> MinHash:
    values = np.frombuffer(made, np.uint32)
    return MinHash(num_perm=HASHES, seed=SEED, scheme=SCHEME, hashvalues=values)
