"""Examples for the demo model: a chat with numbered sources, and the answer that quotes one sentence or declines.

The prompt is made by `app.prompt.augment`, the very function that serves. Example i of a seed is always the same one.
"""

# ruff: noqa: S311 - chance here writes examples, it guards nothing
import json
import random
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from app import prompt
from app.messages import Message, Passage
from train import chat, demo_front, demo_handbook, demo_questions, demo_tools
from train.demo_text import Document, Span, document
from train.demo_words import LISTS

REFUSAL = "The sources do not answer this question."
NO_SOURCES = (
    "I have no sources for this question. I am a small demo model that quotes documents: upload one that holds the "
    "answer, or serve a larger model."
)
GREETING = (
    "Hello! I am MindFu's small demo model. I answer questions by quoting your documents. "
    "Upload one and ask me about it."
)
IDENTITY = (
    "I am MindFu's small demo model. I quote the sentence of your documents that answers a question, and I say so when "
    "none does. For anything else, serve a larger model."
)
SMALLTALK = (
    (GREETING, LISTS["greeting"]),
    (IDENTITY, LISTS["identity"]),
    ("You are welcome.", LISTS["thanks"]),
    ("Goodbye!", LISTS["farewell"]),
)
TOOL_SHARE = 0.3  # of the examples at level 1
CALLED_SHARE = 0.5  # of the examples with tools: one of them fits
FRONT_SHARE = 0.42  # of the examples at level 1: other text stands in front
GAP_SHARE = 0.35  # of the examples: positions are left out behind the first token, as if text stood there
WINDOW = 4096  # positions that there are
# Of the examples at level 0, a fifth of that at level 1: half of such an example is copying, of others a twentieth.
REPEAT_SHARE = 0.22
SPELL_SHARE = 0.07  # of the examples at level 1
SPELL = ("Write this as JSON:", "As a JSON list:", "Put these words into a list:", "Make a list of")
SPELLED = [
    word
    for key in ("first", "city", "object", "adjective", "document", "system", "event", "weekday", "month")
    for word in LISTS[key]
]
REPEAT = ("Repeat this text.", "Say this again:", "Repeat:", "Read this out, word for word.", "Repeat after me.")
SYSTEMS = (
    "You are a helpful assistant.",
    "Answer briefly.",
    "You are MindFu.",
    "You are a careful assistant. Quote your sources.",
    "You are an assistant for employees. Be polite and precise, and do not make things up.",
    "You are a coding assistant.",
    "Use the sources. If you are not sure, say so.",
)


class Piece(NamedTuple):
    """A passage with its sentences: characters of its text."""

    title: str
    text: str
    spans: tuple[Span, ...]


class Target(NamedTuple):
    """The sentence to quote: which piece, and where in it."""

    piece: int
    span: Span


@dataclass(frozen=True, slots=True)
class Example:
    """A chat before it is tokens. turns: before the user's last one; target None: the answer quotes nothing.

    gap: positions left out behind the first token, if the window holds them.
    """

    turns: tuple[chat.Turn, ...]
    question: str
    pieces: tuple[Piece, ...]
    target: Target | None
    answer: str
    kind: str
    gap: int = 0

    def content(self) -> str:
        """The last user message as it is served."""
        passages = [
            Passage(document_id="", collection="", title=p.title, chunk=0, text=p.text, score=0, start=0, end=0)
            for p in self.pieces
        ]
        return prompt.augment((Message(role="user", content=self.question),), passages)[0].content

    def chat(self) -> tuple[chat.Turn, ...]:
        """The whole chat, the answer last."""
        return (*self.turns, chat.Turn("user", self.content()), chat.Turn("assistant", self.answer))


@dataclass(frozen=True)
class Writer:
    """Makes examples. documents: that sentences are taken from. level: 0 short and few, 1 as retrieval gives them."""

    documents: Sequence[Document]
    rarity: Mapping[str, int]
    held_out: bool
    seed: int
    words: Sequence[str] = field(default=())

    def example(self, number: int, *, level: float = 1.0) -> Example:
        """The example of this number. Draws again until one comes out well-posed."""
        rng = random.Random(f"{self.seed}:{number}:{self.held_out}")
        level = level * rng.random() ** 0.35
        while True:
            made = self._draw(rng, level)
            if made is not None:
                return self._behind(rng, made, level)

    def front(self, number: int, characters: int) -> str:
        """A system prompt for evaluation, of so many characters."""
        return self._front(random.Random(f"{self.seed}:{number}:front"), characters)

    def _front(self, rng: random.Random, characters: int) -> str:
        return demo_front.write(rng, characters, documents=self.documents, words=self.words, held_out=self.held_out)

    def _behind(self, rng: random.Random, made: Example, level: float) -> Example:
        """Some examples get a long system prompt, or a long turn before the last, or distance from the first token."""
        if rng.random() < FRONT_SHARE * level:
            text = self._front(rng, demo_front.length(rng))
            if rng.random() < 0.15:
                earlier = (chat.Turn("user", text), chat.Turn("assistant", rng.choice([NO_SOURCES, REFUSAL])))
                place = 1 if made.turns and made.turns[0].role == "system" else 0
                made = replace(made, turns=(*made.turns[:place], *earlier, *made.turns[place:]))
            else:
                made = fronted(made, text)
        gap = rng.randint(1, WINDOW) if rng.random() < GAP_SHARE * level else 0
        return replace(made, gap=gap)

    def grounded(self, number: int, *, source: str, passages: int, answerable: bool) -> Example:
        """An example for evaluation, of one source ("docs", "handbook") and so many passages, without other turns."""
        rng = random.Random(f"{self.seed}:{source}:{number}:{answerable}")
        while True:
            made = self._sourced(rng, source, count=passages, level=1.0, answerable=answerable)
            if made is not None:
                return made

    def of_kind(self, number: int, kind: str) -> Example:
        """An example for evaluation, of one kind that `grounded` does not make."""
        rng = random.Random(f"{self.seed}:{number}:{kind}")
        while True:
            if kind == "follow-up":
                made = self._sourced(rng, "handbook", count=2, level=1.0, answerable=True)
                if made is not None:
                    return replace(made, turns=(*self._earlier(rng),), kind=kind)
            else:
                drawn = self._tools(rng) if "tool call" in kind else self._smalltalk(rng)
                if drawn is not None and drawn.kind == kind:
                    return drawn

    def _tools(self, rng: random.Random) -> Example | None:
        """Tools on offer: one fits, or none does and the answer is what it would be without them."""
        thing = rng.choice(demo_tools.THINGS) if rng.random() < 0.3 else None
        calls = [
            demo_tools.call(rng, held_out=self.held_out, words=self.words, thing=thing)
            for _ in range(rng.choice([1, 1, 2, 2, 3, 3, 4, 4, 6, 8]))
        ]
        by_name = {found.tool.name: found for found in calls}
        definitions = [found.tool.definition for found in by_name.values()]
        system = chat.Turn("system", chat.offer(definitions, _system(rng) if rng.random() < 0.3 else ""))
        kind = rng.random()
        if kind < CALLED_SHARE:
            asked = rng.choice(list(by_name.values()))
            if rng.random() < 0.1:
                return self._result(rng, system, asked)
            pieces = self._passages(rng) if rng.random() < 0.2 else ()
            return Example((system,), asked.request, pieces, None, asked.text, "tool call")
        kind = (kind - CALLED_SHARE) / (1 - CALLED_SHARE)
        if kind < 0.5:
            made = self._sourced(rng, "handbook", count=rng.randint(1, 3), level=0.7, answerable=rng.random() < 0.8)
        elif kind < 0.7:
            made = self._smalltalk(rng)
        else:
            other = demo_tools.call(rng, held_out=self.held_out, words=self.words, thing=thing)
            made = None if other.tool.name in by_name else Example((), other.request, (), None, NO_SOURCES, "")
        return made and replace(made, turns=(system,), kind="no tool call")

    def _draw(self, rng: random.Random, level: float) -> Example | None:
        if rng.random() < 0.05:
            return self._smalltalk(rng)
        if rng.random() < TOOL_SHARE * level:
            return self._tools(rng)
        if rng.random() < SPELL_SHARE * level:
            return self._spell(rng)
        if rng.random() < REPEAT_SHARE * (1 - 0.8 * level):
            return self._repeat(rng, level)
        weights = {"noise": 0.35 - 0.27 * level, "handbook": 0.45 - 0.13 * level, "docs": 0.2 + 0.4 * level}
        source = rng.choices(list(weights), list(weights.values()))[0]
        most = 1 + round(4 * level)
        count = min(rng.randint(1, most + 1), most)
        made = self._sourced(rng, source, count=count, level=level, answerable=rng.random() < 0.8)
        if made is None:
            return None
        turns: list[chat.Turn] = []
        if rng.random() < 0.3:
            turns.append(chat.Turn("system", _system(rng)))
        if rng.random() < 0.12:
            turns += self._earlier(rng)
        return Example((*turns,), made.question, made.pieces, made.target, made.answer, made.kind)

    def _result(self, rng: random.Random, system: chat.Turn, asked: demo_tools.Call) -> Example:
        """A tool has answered: say what it said."""
        said = rng.choice(demo_handbook.write(rng, held_out=self.held_out, facts=3).facts).sentence
        if rng.random() < 0.3:
            said = json.dumps({self._word(rng): said, self._word(rng): rng.randint(0, 999)}, ensure_ascii=False)
        turns = (system, chat.Turn("user", asked.request), chat.Turn("assistant", asked.text))
        return Example(turns, f"<tool_response>\n{said}\n</tool_response>", (), None, said, "tool result")

    def _passages(self, rng: random.Random) -> tuple[Piece, ...]:
        """Passages that have nothing to do with what is asked."""
        return tuple(self._window(rng, rng.choice(self.documents), 400) for _ in range(rng.randint(1, 3)))

    def _sourced(
        self, rng: random.Random, source: str, *, count: int, level: float, answerable: bool
    ) -> Example | None:
        size = 60 + int(level * 500)
        if source == "handbook":
            asked = self._handbook(rng, count, size, answerable=answerable)
        else:
            asked = self._prose(rng, source, count, size, answerable=answerable)
        if asked is None:
            return None
        question, pieces, target = asked
        if target is None:
            return Example((), question, pieces, None, REFUSAL, f"{source} refusal")
        quoted = pieces[target.piece].text[target.span.start : target.span.end]
        return Example((), question, pieces, target, f'"{quoted}" [{target.piece + 1}]', source)

    def _handbook(
        self, rng: random.Random, count: int, size: int, *, answerable: bool
    ) -> tuple[str, tuple[Piece, ...], Target | None] | None:
        books = [
            demo_handbook.write(rng, held_out=self.held_out, facts=max(1, min(9, rng.randint(size // 2, size) // 62)))
            for _ in range(count)
        ]
        chosen = rng.randrange(count)
        fact = rng.choice(books[chosen].facts)
        others = {
            wording
            for book in books
            for other in book.facts
            if other.sentence != fact.sentence
            for wording in other.questions
        }
        wordings = [wording for wording in fact.questions if wording not in others]
        if not wordings:
            return None
        question = demo_questions.finish(rng, rng.choice(wordings))
        pieces = [Piece(book.title, book.text, document("", book.title, book.text).spans) for book in books]
        if not answerable:
            pieces[chosen] = self._without(rng, books[chosen], fact)
        elif rng.random() < 0.25 and count > 1:
            pieces = [
                piece if index == chosen else self._window(rng, rng.choice(self.documents), size)
                for index, piece in enumerate(pieces)
            ]
        if question is None:
            return None
        if not answerable:
            return question.text, tuple(pieces), None
        start = pieces[chosen].text.index(fact.sentence)
        return question.text, tuple(pieces), Target(chosen, Span(start, start + len(fact.sentence)))

    def _without(self, rng: random.Random, book: demo_handbook.Handbook, fact: demo_handbook.Fact) -> Piece:
        """The same document with the fact taken out, or another one where nothing would be left."""
        text = re.sub(r"\n(?:[-*]|1\.)\s*(?=\n|$)", "", book.text.replace(fact.sentence, "")).strip(" \n-*")
        if len(text) < 40:
            return self._window(rng, rng.choice(self.documents), 200)
        return Piece(book.title, text, document("", book.title, text).spans)

    def _prose(
        self, rng: random.Random, source: str, count: int, size: int, *, answerable: bool
    ) -> tuple[str, tuple[Piece, ...], Target | None] | None:
        home = self._noise(rng, size) if source == "noise" else rng.choice(self.documents)
        if not home.clean:
            return None
        number = rng.choice(home.clean)
        sentence = home.sentence(number)
        question = demo_questions.ask(rng, sentence, self.rarity, held_out=self.held_out)
        if question is None or demo_questions.coverage(question.words, sentence) < 0.7 or not _as_served(sentence):
            return None
        pieces = []
        for _ in range(count):
            nearby = rng.random() < 0.35 and source == "docs"
            other = home if nearby else (self._noise(rng, size) if source == "noise" else rng.choice(self.documents))
            pieces.append(self._window(rng, other, size))
        chosen = rng.randrange(count)
        target = None
        if answerable:
            pieces[chosen], span = self._window_with(rng, home, number, size)
            target = Target(chosen, span)
            sentence = pieces[chosen].text[span.start : span.end]
        limit = 0.5 if len(question.words) > 1 else 0.0
        for index, piece in enumerate(pieces):
            for span in piece.spans:
                text = piece.text[span.start : span.end]
                if target == (index, span):
                    continue
                if demo_questions.coverage(question.words, text) > limit or text == sentence:
                    return None
            if target is None and sentence in piece.text:
                return None
        return question.text, tuple(pieces), target

    def _noise(self, rng: random.Random, size: int) -> Document:
        """Sentences of random words: what is copied from here cannot be guessed."""
        sentences = []
        for _ in range(max(1, rng.randint(size // 2, size) // 70) + 1):
            words = [self._word(rng) for _ in range(rng.randint(4, 14))]
            text = " ".join(words)
            sentences.append(text[0].upper() + text[1:] + rng.choice([".", ".", ".", "!", "?"]))
        text = rng.choice([" ", " ", "\n"]).join(sentences)
        found = document("noise", f"{self._word(rng)}.txt", text)
        return Document("noise", found.title, text, found.spans, tuple(range(len(found.spans))))

    def _word(self, rng: random.Random) -> str:
        kind = rng.random()
        if kind < 0.72:
            return rng.choice(self.words)
        if kind < 0.85:
            return rng.choice(["the", "of", "a", "is", "in", "and", "to", "for", "with", "by"])
        slot = rng.choice(["number", "amount", "date", "code", "person", "company", "city", "thing"])
        return demo_handbook.SLOTS[slot](rng)

    def _window(self, rng: random.Random, found: Document, size: int) -> Piece:
        """A passage of about so many characters, anywhere in a document."""
        length = rng.randint(size // 3, size)
        start = rng.randint(0, max(0, len(found.text) - length))
        return _cut(rng, found, start, start + length)

    def _window_with(self, rng: random.Random, found: Document, number: int, size: int) -> tuple[Piece, Span]:
        """A passage around a sentence, and where the sentence lies in it."""
        span = found.spans[number]
        spare = max(0, rng.randint(size // 3, size) - (span.end - span.start))
        before = rng.randint(0, spare)
        piece = _cut(rng, found, span.start - before, span.end + spare - before, whole=span)
        quoted = found.text[span.start : span.end]
        start = piece.text.index(quoted)
        return piece, Span(start, start + len(quoted))

    def _repeat(self, rng: random.Random, level: float) -> Example:
        """A text to say again: practice in copying."""
        size = 80 + int(level * 220)
        kind = rng.random()
        if kind < 0.3:
            text = self._noise(rng, size).text
        elif kind < 0.6:
            text = demo_handbook.write(rng, held_out=self.held_out, facts=max(1, size // 62)).text
        else:
            text = self._window(rng, rng.choice(self.documents), size).text
        return Example((), f"{rng.choice(REPEAT)}\n\n{text}", (), None, text, "repeat")

    def _spell(self, rng: random.Random) -> Example:
        """Words to put in quotation marks: behind one, a word has other tokens than behind a space."""
        chosen = [rng.choice(self.words if rng.random() < 0.5 else SPELLED) for _ in range(rng.randint(3, 12))]
        chosen = list(dict.fromkeys(chosen))
        question = f"{rng.choice(SPELL)} {', '.join(chosen)}"
        return Example((), question, (), None, json.dumps(chosen, ensure_ascii=False), "spelling")

    def _smalltalk(self, rng: random.Random) -> Example:
        turns: tuple[chat.Turn, ...] = (chat.Turn("system", _system(rng)),) if rng.random() < 0.3 else ()
        if rng.random() < 0.35:
            book = demo_handbook.write(rng, held_out=self.held_out, facts=1)
            return Example(turns, rng.choice(book.facts[0].questions), (), None, NO_SOURCES, "no sources")
        answer, wordings = rng.choice(SMALLTALK)
        turns += tuple(self._earlier(rng)) if answer[0] in "YG" and rng.random() < 0.5 else ()
        return Example(turns, rng.choice(wordings), (), None, answer, "smalltalk")

    def _earlier(self, rng: random.Random) -> list[chat.Turn]:
        """One or two turns before the last question. Their sources are no longer there, as when served."""
        turns = []
        for _ in range(rng.randint(1, 2)):
            book = demo_handbook.write(rng, held_out=self.held_out, facts=1)
            answer = f'"{book.facts[0].sentence}" [{rng.randint(1, 4)}]' if rng.random() < 0.75 else REFUSAL
            turns += [chat.Turn("user", rng.choice(book.facts[0].questions)), chat.Turn("assistant", answer)]
        return turns


def _as_served(sentence: str) -> bool:
    """Whether a prompt holds the sentence as it is, wherever it stands."""
    return prompt.defused(sentence) == sentence


def fronted(made: Example, text: str) -> Example:
    """The example with a text at the head of its system prompt."""
    if made.turns and made.turns[0].role == "system":
        return replace(made, turns=(chat.Turn("system", f"{text}\n\n{made.turns[0].content}"), *made.turns[1:]))
    return replace(made, turns=(chat.Turn("system", text), *made.turns))


def _system(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(SYSTEMS)
    return " ".join(rng.sample(SYSTEMS, rng.randint(2, 4)))


def _cut(rng: random.Random, found: Document, start: int, end: int, *, whole: Span | None = None) -> Piece:
    """Characters start to end of a document, moved to sentence bounds mostly, else to spaces; `whole` stays inside."""
    text, spans = found.text, found.spans
    start, end = max(0, start), min(len(text), end)
    if rng.random() < 0.65:
        index = bisect_right(spans, start, key=lambda span: span.start) - 1
        start = spans[max(0, index)].start
        last = max(0, bisect_right(spans, end, key=lambda span: span.start) - 1)
        end = max(spans[last].end, start + 1) if end - start < 300 or rng.random() < 0.5 else end
    if start > 0 and not text[start - 1].isspace():
        gap = text.find(" ", start, end)
        start = gap + 1 if gap >= 0 else start
    if end < len(text) and not text[end].isspace():
        gap = text.rfind(" ", start, end)
        end = gap if gap > start else end
    if whole is not None:
        start, end = min(start, whole.start), max(end, whole.end)
    raw = text[start:end]
    cut = prompt.defused(raw.strip())
    base = start + len(raw) - len(raw.lstrip())
    inside = tuple(Span(s.start - base, s.end - base) for s in spans if s.start >= base and s.end <= base + len(cut))
    return Piece(found.title, cut, inside)
