"""What a tokenizer is asked for, whichever engine it belongs to: a GGUF's (model.py), or a tokenizer.json's."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]


class Vocabulary(Protocol):
    """Tokens of one model. Shared by threads. A token that there is not is -1."""

    def tokenize(self, text: str, *, special: bool) -> Tokens:
        """Tokens of a text, nothing added. special: marks like <|im_end|> in it become the tokens that they name."""
        ...

    def name(self, token: int) -> str:
        """How a token is written, control tokens too: <|im_end|>. Of no token: empty."""
        ...

    def speak(self, mark: str) -> None:
        """Let a mark be heard: where one control token is written so, its bytes are part of the answer."""
        ...

    def controls(self, token: int) -> bool:
        """Whether a token is a control token, like <|im_end|>."""
        ...

    def bos(self) -> int:
        """The token that begins a text."""
        ...

    def eos(self) -> int:
        """The token that ends a text."""
        ...

    def adds_bos(self) -> bool:
        """Whether the model wants every text to begin with `bos`."""
        ...

    def adds_space(self) -> bool:
        """Whether the model was trained on texts with a space put in front (SentencePiece's dummy prefix)."""
        ...

    def marks(self) -> dict[int, str]:
        """Tokens that are written as markup although they are not control tokens."""
        ...

    def chat_template(self) -> str | None:
        """The Jinja source of the chat template, None where there is none."""
        ...
