"""A conversation as the tokens that a model sees when it is served, and which of them it is to learn to say.

The chat template and the cutting into segments are the engine's own (app/llama): what the template wrote may name
special tokens, what people wrote never does. A learnt answer begins where the engine would begin to decode, and ends
with the token that ends the turn, which is learnt too; what the template writes behind that is not.
"""

import copy
import re
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from app.errors import InvalidRequest, Misconfigured
from app.llama.template import ChatTemplate
from app.llama.untrusted import Segment
from app.messages import Message, Tool
from train.lines import Line, Preference
from train.recipe import STYLE_SETTING

SETTING = "tune.base"


class Lesson(NamedTuple):
    """One sequence of tokens. learnt: of each, whether it is predicted for the loss. Of equal length."""

    tokens: list[int]
    learnt: list[bool]

    def within(self, window: int) -> "Lesson | None":
        """As much of it as fits, up to the end of a learnt answer. None: not even the first one fits."""
        if len(self.tokens) <= window:
            return self
        end = window
        while end and not (self.learnt[end - 1] and not self.learnt[end]):
            end -= 1
        return Lesson(self.tokens[:end], self.learnt[:end]) if end else None


class Pair(NamedTuple):
    """The tokens of a preference. chosen and rejected follow the prompt, each with the end of its turn."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class _Piece(NamedTuple):
    """Segments of a rendered chat, and whether they are learnt."""

    segments: list[Segment]
    learnt: bool


class Teacher:
    """Turns lines into lessons for one base model.

    folder: the model's, as transformers reads it. template: by which chats are shown; None: the model's own.
    """

    def __init__(self, folder: Path, template: str | None = None) -> None:
        import transformers  # takes seconds to load

        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        source = self.tokenizer.chat_template if template is None else template
        if not isinstance(source, str):
            remedy = "Give a model that was made for chats, or set tune.chat_template."
            raise Misconfigured(SETTING, f"{folder} has no chat template", remedy)
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or _prefixes_a_space(backend):
            problem = f"{folder} has a tokenizer that cannot cut text into segments (SentencePiece with a prefix space)"
            raise Misconfigured(SETTING, problem, "Give a model with a byte-level tokenizer, as most have since 2024.")
        self._special, self._plain = copy.deepcopy(backend), copy.deepcopy(backend)
        self._special.encode_special_tokens, self._plain.encode_special_tokens = False, True
        self._ends = self._end_tokens(folder)
        self.replace_template(source, SETTING if template is None else STYLE_SETTING)

    def replace_template(self, source: str, setting: str = STYLE_SETTING) -> None:
        """Show chats by another template. setting: where it comes from, for errors."""
        bos, eos = self.tokenizer.bos_token or "", self.tokenizer.eos_token or ""
        self._template = ChatTemplate(source, bos=bos, eos=eos, setting=setting)
        added = self.tokenizer.added_tokens_decoder.values()
        forged = [re.escape(t.content) for t in added if not t.special and len(t.content) > 1 and t.content in source]
        self._forged = re.compile("|".join(forged)) if forged else None

    def lessons(self, line: Line) -> list[Lesson]:
        """A line as one lesson; as one for each learnt answer, where the template shows an answer otherwise once it
        is past (without its thoughts, mostly). Raises InvalidRequest where the template cannot show the line.
        """
        learnt = [place for place, weight in enumerate(line.weights) if weight]
        if not learnt:
            return []
        whole = self._segments(line.messages, line.tools, answering=False)
        spans = [self._span(line.messages[: place + 1], line.tools) for place in learnt]
        text = _text(whole)
        if all(text.startswith(_text(span.until)) for span in spans):
            return [self._lesson(_pieces(whole, [(len(_text(s.before)), len(_text(s.until))) for s in spans]))]
        return [self._lesson(_pieces(s.until, [(len(_text(s.before)), len(_text(s.until)))])) for s in spans]

    def pair(self, pair: Preference) -> Pair:
        """The tokens of a preference. Raises InvalidRequest as `lessons` does."""
        answers = []
        for answer in (pair.chosen, pair.rejected):
            span = self._span((*pair.prompt, answer), pair.tools)
            lesson = self._lesson(_pieces(span.until, [(len(_text(span.before)), len(_text(span.until)))]))
            begin = lesson.learnt.index(True)
            answers.append((lesson.tokens[:begin], lesson.tokens[begin : begin + sum(lesson.learnt)]))
        (prompt, chosen), (_, rejected) = answers
        return Pair(prompt, chosen, rejected)

    def _span(self, messages: Sequence[Message], tools: Sequence[Tool]) -> "_Span":
        """The last of the messages, an answer: what the model sees before it says it, and that with the answer."""
        before = self._segments(messages[:-1], tools, answering=True)
        until = self._segments(messages, tools, answering=False)
        if not _text(until).startswith(_text(before)):
            message = "The model's chat template shows this answer otherwise than the model would have to say it."
            raise InvalidRequest(message, "messages")
        return _Span(before, until)

    def _segments(self, messages: Sequence[Message], tools: Sequence[Tool], *, answering: bool) -> list[Segment]:
        return self._template.render(messages, tools, answering=answering).segments

    def _lesson(self, pieces: Iterable[_Piece]) -> Lesson:
        tokens: list[int] = []
        learnt: list[bool] = []
        for segments, wanted in pieces:
            made = [token for segment in segments for token in self._tokens(segment)]
            said = self._until_the_end(made) if wanted else 0
            tokens += made
            learnt += [place < said for place in range(len(made))]
        return Lesson(tokens, learnt)

    def _until_the_end(self, answer: Sequence[int]) -> int:
        """How many tokens the model says itself: up to the last that ends a turn, all where none does."""
        ends = [place for place, token in enumerate(answer) if token in self._ends]
        return ends[-1] + 1 if ends else len(answer)

    def _tokens(self, segment: Segment) -> list[int]:
        """As app/llama/tokenizer.py: a mark of the template in untrusted text is cut behind its first character."""
        if segment.trusted:
            return list(self._special.encode(segment.text, add_special_tokens=False).ids)
        texts, start = [], 0
        while self._forged and (mark := self._forged.search(segment.text, start)):
            texts.append(segment.text[start : mark.start() + 1])
            start = mark.start() + 1
        texts.append(segment.text[start:])
        return [token for text in texts for token in self._plain.encode(text, add_special_tokens=False).ids]

    def _end_tokens(self, folder: Path) -> frozenset[int]:
        """The tokens at which the model stops: the tokenizer's, and those of generation_config.json."""
        import transformers

        ends: list[Any] = [self.tokenizer.eos_token_id]
        if (folder / "generation_config.json").exists():
            told = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
            ends += told if isinstance(told, list) else [told]
        return frozenset(end for end in ends if end is not None)


class _Span(NamedTuple):
    """A chat up to an answer, and with it."""

    before: list[Segment]
    until: list[Segment]


def _text(segments: Iterable[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def _pieces(segments: Sequence[Segment], spans: Sequence[tuple[int, int]]) -> list[_Piece]:
    """Cut segments at the borders of spans, which are learnt. spans: from and to, in characters, in their order."""
    borders = [0, *(border for span in spans for border in span), sum(len(segment.text) for segment in segments)]
    pieces = []
    for number, (start, end) in enumerate(pairwise(borders)):
        if start < end:
            pieces.append(_Piece(_between(segments, start, end), learnt=number % 2 == 1))
    return pieces


def _between(segments: Sequence[Segment], start: int, end: int) -> list[Segment]:
    ends = list(accumulate(len(segment.text) for segment in segments))
    found = []
    for segment, stop in zip(segments, ends, strict=True):
        first = stop - len(segment.text)
        text = segment.text[max(start - first, 0) : max(end - first, 0)]
        if text:
            found.append(Segment(text, segment.trusted))
    return found


def _prefixes_a_space(backend: Any) -> bool:
    """Whether a tokenizer puts a space in front of text, so that pieces of a text are other tokens than the whole."""
    text = backend.to_str()
    return '"prepend_scheme":"always"' in text or '"type":"Prepend"' in text or '"prepend_scheme":"first"' in text
