"""Requests to tokens. What a template wrote may name special tokens; what anybody else wrote never does.

llama.cpp's `parse_special=False` leaves control tokens alone, but not those that a GGUF calls user defined, among
which are markers like <tool_call>. Where the model's own template uses such a marker, it is cut in untrusted text.
"""

import re
from typing import NamedTuple

import numpy as np

from app.errors import InvalidRequest
from app.llama.constraint import leaves_no_thoughts
from app.llama.styles import AUTO, name_of, template_of
from app.llama.syntax import CallParser, Syntax
from app.llama.template import ChatTemplate
from app.llama.untrusted import Segment
from app.llama.vocabulary import Tokens, Vocabulary
from app.messages import Generate

MODEL_SETTING, STYLE_SETTING = "llm.model", "llm.chat_template"


class Prompt(NamedTuple):
    """What the model reads. thinking: it ends within the model's thoughts, which the template began."""

    tokens: Tokens
    thinking: bool


class Tokenizer:
    """Turns a request into the tokens of its prompt. Shared by threads. style: of its chat template (styles.py)."""

    def __init__(self, model: Vocabulary, parser: CallParser = "auto", style: str = AUTO) -> None:
        self._model = model
        self._bos, self._bos_text = model.bos(), model.name(model.bos())
        self._adds_bos, self._adds_space = model.adds_bos(), model.adds_space()
        given = template_of(style, STYLE_SETTING)
        self.style = name_of(given)
        source = model.chat_template() if given is None else given
        eos_text, setting = model.name(model.eos()), MODEL_SETTING if given is None else STYLE_SETTING
        self._template = (
            None
            if source is None
            else ChatTemplate(source, bos=self._bos_text, eos=eos_text, parser=parser, setting=setting)
        )
        forged = [
            re.escape(mark) for mark in model.marks().values() if len(mark.strip()) > 1 and mark in (source or "")
        ]
        for mark in self._template.syntax.marks if self._template else ():
            model.speak(mark)
        self._markers = re.compile("|".join(forged)) if forged else None

    @property
    def syntax(self) -> Syntax | None:
        """How the model makes thoughts and calls; None where it has no chat template."""
        return self._template.syntax if self._template else None

    def prompt(self, request: Generate) -> Prompt:
        """The tokens of a request's prompt, `bos` included once where the model wants it, tools too where they count.

        Raises InvalidRequest where neither a prompt nor messages are given, or the template refuses the messages.
        """
        if (request.prompt is None) == (not request.messages):
            raise InvalidRequest("Give either messages or a prompt.", "messages")
        if request.prompt is not None:
            return Prompt(self._tokens([Segment(request.prompt, trusted=False)]), thinking=False)
        if self._template is None:
            message = (
                "This model has no chat template, so it cannot chat. Use /v1/completions, or set llm.chat_template."
            )
            raise InvalidRequest(message, "messages")
        tools = () if request.tool_choice == "none" else request.tools  # what cannot be called is not shown
        wish = False if leaves_no_thoughts(request) else request.thinking
        segments, thinking = self._template.render(request.messages, tools, thinking=wish)
        return Prompt(self._tokens(segments), thinking)

    def count(self, text: str) -> int:
        """Number of tokens of a text alone."""
        return len(self._text(text))

    def _tokens(self, segments: list[Segment]) -> Tokens:
        """Template and model may both have an opinion about `bos`: it comes once."""
        begins = self._adds_bos
        if segments and segments[0].trusted and self._bos_text:
            rest = segments[0].text
            while rest.startswith(self._bos_text):
                begins, rest = True, rest.removeprefix(self._bos_text)
            segments = [Segment(rest, trusted=True), *segments[1:]] if rest else segments[1:]
        pieces = [np.array([self._bos] if begins else [], np.int32)]
        pieces += [self._segment(segment, first=index == 0) for index, segment in enumerate(segments)]
        return np.concatenate(pieces)

    def _segment(self, segment: Segment, *, first: bool) -> Tokens:
        """The space that SentencePiece models were trained with stands in front of the first word of all."""
        text, trusted = segment
        tokens = self._model.tokenize(text, special=True) if trusted else self._text(text)
        if not (first and self._adds_space and len(tokens)) or self._model.controls(int(tokens[0])):
            return tokens
        return self._model.tokenize(" " + text, special=True) if trusted else self._text(" " + text)

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
