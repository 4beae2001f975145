"""Examples for the demo model as tokens, with what training teaches at which of them.

The chats are those of train/demo_examples.py.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tokenizers import Encoding, Tokenizer

from train import chat, demo_questions, demo_tools
from train.demo_examples import WINDOW, Example
from train.demo_text import WORD


@dataclass(frozen=True, slots=True)
class Encoded:
    """An example as tokens. At position i the next token is to be predicted.

    answer: first position whose next token is the answer's, until the end of `tokens` (the end of turn included).
    pointers: (position, earlier position that holds the token to copy).
    sentences: (first token, last token, is it quoted).
    matches: (last token of a passage's word, last token of the same word in the question, or 0 where it has none).
    gathers: (last token of an offered tool, each of its words), (token of the answer, each word asked for that a tool
        has, or 0 where none has one).
    gap: positions left out behind the first token.
    """

    tokens: list[int]
    answer: int
    pointers: list[tuple[int, int]]
    sentences: list[tuple[int, int, bool]]
    matches: list[tuple[int, int]]
    gathers: list[tuple[int, int]]
    kind: str
    gap: int = 0


class _Place(NamedTuple):
    """Where a turn's content stands among the tokens. ends: of its tokens, characters."""

    base: int
    ends: list[int]

    def at(self, character: int) -> int:
        """The token that holds a character of the content."""
        return self.base + bisect_right(self.ends, character)


def encode(tokenizer: Tokenizer, example: Example) -> Encoded:
    """Tokens, and what training teaches at which of them."""
    turns = example.chat()
    rendered = chat.render(tokenizer, turns)
    places = [_Place(base, [end for _, end in encoding.offsets]) for base, encoding in rendered.contents]
    answer, words = rendered.contents[-1]
    tokens = rendered.tokens[: answer + len(words) + 1]
    asked = {
        stem: places[-2].at(word.end() - 1)
        for word in WORD.finditer(example.question)
        for stem in [demo_questions.telling(word[0])]
        if stem is not None
    }
    gap = min(example.gap, WINDOW - len(tokens))
    encoded = Encoded(tokens, answer - 1, [], [], [], [], example.kind, max(0, gap))
    _mark_sources(encoded, example, words, places[-2], asked)
    if example.kind in ("repeat", "tool result"):
        start = turns[-2].content.rindex(example.answer)
        encoded.pointers.extend(_copied(encoded, words, 0, len(example.answer), places[-2], start))
    if example.kind == "spelling":
        origin = start = 0
        for word in json.loads(example.answer):
            origin, start = example.question.index(f" {word}", origin) + 1, example.answer.index(f'"{word}"', start) + 1
            encoded.pointers.extend(_copied(encoded, words, start, len(word), places[-2], origin))
    if "tool call" in example.kind:
        _mark_offers(encoded, example, words, (places[0], places[-2]), asked)
    return encoded


def _copied(
    encoded: Encoded, words: Encoding, start: int, length: int, source: _Place, origin: int
) -> list[tuple[int, int]]:
    """Pointers for characters of the answer that stand from `origin` on in the source."""
    found = []
    for index, (begin, end) in enumerate(words.offsets):
        place = begin + (words.tokens[index].startswith("Ġ") and end - begin > 1)
        if start <= place < start + length:
            found.append((encoded.answer + index, source.at(origin + place - start)))
    return found


def _mark_sources(encoded: Encoded, example: Example, words: Encoding, place: _Place, asked: dict[str, int]) -> None:
    """Sentences and words of the passages, and what the answer quotes of them."""
    content, cursor = example.content(), len(example.question)
    for number, piece in enumerate(example.pieces):
        label = content.index(f"[{number + 1}] ", cursor)
        text = content.index(piece.text, label)
        cursor = text + len(piece.text)
        encoded.matches.extend(_matched(content, text, cursor, place, asked))
        for span in piece.spans:
            quoted = example.target is not None and example.target == (number, span)
            encoded.sentences.append((place.at(text + span.start), place.at(text + span.end - 1), quoted))
        if example.target is None or example.target.piece != number:
            continue
        start, length = example.target.span.start, example.target.span.end - example.target.span.start
        encoded.pointers.extend(_copied(encoded, words, 1, length, place, text + start))
        for index, (begin, end) in enumerate(words.offsets):
            if example.answer[begin:end] == str(number + 1) and begin > length:
                encoded.pointers.append((encoded.answer + index, place.at(label + 1)))


def _mark_offers(
    encoded: Encoded, example: Example, words: Encoding, places: tuple[_Place, _Place], asked: dict[str, int]
) -> None:
    """The tools of the system prompt as sentences, and what the call copies from there and from the request."""
    system = example.turns[0].content
    name = demo_tools.called(example.answer)
    offered: dict[str, int] = {}
    for tool in demo_tools.offered(system):
        is_called = name is not None and system.startswith(f'{name}"', tool.start)
        last = places[0].at(tool.end - 1)
        encoded.sentences.append((places[0].at(tool.start), last, is_called))
        known = {
            stem: places[0].at(word.end() - 1)
            for word in WORD.finditer(system.replace("_", " "), tool.start, tool.end)
            for stem in [demo_questions.telling(word[0])]
            if stem is not None and word[0] != "description"
        }
        encoded.gathers.extend((last, place) for place in known.values())
        offered = {**offered, **known} if is_called else {**known, **offered}
    encoded.matches.extend((place, offered.get(stem, 0)) for stem, place in asked.items())
    for part in demo_tools.parts(example.answer, system, example.question):
        source = places[0] if part.offered else places[1]
        encoded.pointers.extend(_copied(encoded, words, part.start, part.length, source, part.source))
    first = [looks for looks, _ in encoded.pointers[:1]] if name is not None else []
    shared = [place for stem, place in asked.items() if stem in offered]
    encoded.gathers.extend((looks, at) for looks in (encoded.answer, *first) for at in shared or [0])


def _matched(text: str, start: int, end: int, place: _Place, asked: dict[str, int]) -> Iterator[tuple[int, int]]:
    for word in WORD.finditer(text, start, end):
        stem = demo_questions.telling(word[0])
        if stem is not None:
            yield place.at(word.end() - 1), asked.get(stem, 0)
