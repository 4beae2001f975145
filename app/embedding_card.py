"""What is known of an embedding model beside its weights and its tokenizer, and what every backend is held against."""

from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from app.errors import Misconfigured
from app.messages import Strict
from app.vectors import Floats

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SETTING = "embedding.model"
PROBES = (
    "short",
    "A somewhat longer text, so that the other one is padded beside it.",
    " ".join(f"Line {number} of a passage says nothing." for number in range(20)),
)
PROBE_COSINE = 0.999  # kernels and 16 bits explain .9999, a wrong prompt or pooling gives less than .99

Purpose = Literal["query", "document", "plain"]
PURPOSES: tuple[Purpose, ...] = ("query", "document", "plain")  # in the order of a reference
Ints = NDArray[np.int64]


class Card(Strict):
    """query, document, plain: the prompt in front of such a text; most models want none. before, after: special tokens
    around a text. max_tokens: what the model reads of a text, these counted.
    """

    model: str
    dimension: int
    max_tokens: int
    query: str
    document: str
    plain: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    pad: int
    pads_left: bool


class Network(Protocol):
    """The model itself. describes: what computes it, for people. pass_tokens: of a good pass; None: the usual.
    reference: what sentence-transformers makes of the probes, float32 (purposes, probes, dimension).
    """

    card: Card
    tokenizer: "Tokenizer"
    reference: Floats
    describes: str
    pass_tokens: int | None

    def forward(self, ids: Ints, mask: Ints) -> Floats:
        """Unit vectors, float32 (texts, dimension). ids, mask: int64 (texts, tokens). From several threads at once."""


def unfit(name: str, why: str) -> Misconfigured:
    """The refusal of a model that would be served wrong."""
    return Misconfigured(SETTING, f"'{name}' is not supported: {why}", "Choose a sentence-transformers text model.")
