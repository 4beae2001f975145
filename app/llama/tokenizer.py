"""Requests to tokens. What a template wrote may name special tokens; what anybody else wrote never does.

llama.cpp's `parse_special=False` leaves control tokens alone, but not those that a GGUF calls user defined, among
which are markers like <tool_call>. Where the model's own template uses such a marker, it is cut in untrusted text.
"""

import re
from collections.abc import Iterable

import numpy as np

from app.errors import InvalidRequest
from app.llama.model import Model, Tokens
from app.llama.template import ChatTemplate
from app.llama.untrusted import Segment
from app.messages import Generate


class Tokenizer:
    """Turns a request into the tokens of its prompt. Shared by threads."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._bos, self._adds_bos, self._adds_space = model.bos(), model.adds_bos(), model.adds_space()
        source = model.chat_template()
        names = {"bos": model.name(self._bos), "eos": model.name(model.eos())}
        self._template = None if source is None else ChatTemplate(source, **names)
        forged = [
            re.escape(mark) for mark in model.marks().values() if len(mark.strip()) > 1 and mark in (source or "")
        ]
        self._markers = re.compile("|".join(forged)) if forged else None

    def prompt(self, request: Generate) -> Tokens:
        """The tokens of a request's prompt, `bos` included once where the model wants it.

        Raises InvalidRequest where neither a prompt nor messages are given, or the template refuses the messages.
        """
        if (request.prompt is None) == (not request.messages):
            raise InvalidRequest("Give either messages or a prompt.", "messages")
        if request.prompt is not None:
            return self._with_bos(self._tokens([Segment(request.prompt, trusted=False)]))
        if self._template is None:
            message = "This model has no chat template, so it cannot chat. Use /v1/completions."
            raise InvalidRequest(message, "messages")
        return self._with_bos(self._tokens(self._template.render(request.messages)))

    def count(self, text: str) -> int:
        """Number of tokens of a text alone."""
        return len(self._text(text))

    def _tokens(self, segments: Iterable[Segment]) -> Tokens:
        pieces, first = [], self._adds_space
        for text, trusted in segments:
            text = " " + text if first else text  # noqa: PLW2901 — the same text, as the model was trained on it
            pieces.append(self._model.tokenize(text, special=True) if trusted else self._text(text))
            first = False
        return np.concatenate(pieces) if pieces else np.empty(0, np.int32)

    def _text(self, text: str) -> Tokens:
        """Untrusted text, in which a marker of the template is cut behind its first character."""
        if self._markers is None:
            return self._model.tokenize(text, special=False)
        pieces, start = [], 0
        while marker := self._markers.search(text, start):  # from the cut again: marks may overlap
            pieces.append(self._model.tokenize(text[start : marker.start() + 1], special=False))
            start = marker.start() + 1
        pieces.append(self._model.tokenize(text[start:], special=False))
        return np.concatenate(pieces)

    def _with_bos(self, tokens: Tokens) -> Tokens:
        """Template and model may both have an opinion about `bos`: it comes once."""
        starts = 0
        while starts < len(tokens) and tokens[starts] == self._bos:
            starts += 1
        if starts == 0 and not self._adds_bos:
            return tokens
        return np.concatenate([np.array([self._bos], np.int32), tokens[starts:]])
