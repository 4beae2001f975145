"""Questions about a sentence of prose, made from its own words: keywords, phrases, inverted sentences.

Two sets of wordings: one for training, one that only evaluation uses.
"""

import random
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from typing import NamedTuple

from train.demo_text import WORD
from train.demo_words import LISTS

STOP = frozenset(LISTS["stop"])
AUXILIARY = re.compile(r"\b(is|are|was|were|can|must|should|will|may|has|have|cannot|could|would)\b")
KEYWORD_FORMS = (
    "{k}",
    "{k}?",
    "what about {k}?",
    "What does it say about {k}?",
    "Where is {k} mentioned?",
    "I need to know about {k}.",
    "Is there anything on {k}?",
    "Question: {k}",
    "Which sentence talks about {k}?",
    "please explain {k}",
)
PHRASE_FORMS = (
    "What is {p}?",
    "What are {p}?",
    "What does the documentation say about {p}?",
    "Tell me about {p}.",
    "How does {p} work?",
    "Explain {p}.",
    "What happens with {p}?",
    "{p}?",
    "How do I use {p}?",
    "Why {p}?",
    "What do I need to know about {p}?",
    "When is {p} used?",
    "Where can I read about {p}?",
    "What does {p} mean?",
)
KEYWORD_FORMS_HELD_OUT = ("Do you have information on {k}?", "anything regarding {k}", "Look up {k}, please.")
PHRASE_FORMS_HELD_OUT = ("Can you describe {p}?", "Could you say what {p} is?", "What is written about {p}?")
INVERTED_FORMS = (
    "What {aux} {subject}?",
    "{aux} {subject} {rest}?",
    "When {aux} {subject} {rest}?",
    "Why {aux} {subject} {rest}?",
)
INVERTED_FORMS_HELD_OUT = ("How {aux} {subject} {rest}?", "In which case {aux} {subject} {rest}?")
IMPERATIVE_FORMS = (
    "How do I {verb} {rest}?",
    "What {verb}s {rest}?",
    "How can I {verb} {rest}?",
    "When to {verb} {rest}?",
)
IMPERATIVE_FORMS_HELD_OUT = ("What is there to {verb} {rest}?", "How would one {verb} {rest}?")
VERBS = frozenset(LISTS["verbs"])


class Question(NamedTuple):
    """text: as a person asks it. words: the stems that an answer should hold."""

    text: str
    words: frozenset[str]


def stem(word: str) -> str:
    """A crude stem, good enough to see that "returns" and "return" are one word."""
    word = word.lower()
    for ending in ("ingly", "ings", "ing", "ies", "edly", "ed", "es", "s", "e", "y"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


@lru_cache(maxsize=100_000)
def telling(word: str) -> str | None:
    """The stem of a word that means something in a question, None for one that does not."""
    return None if word.lower() in STOP else stem(word)


def stems(text: str) -> frozenset[str]:
    """The stems of a text's telling words."""
    return frozenset(found for word in WORD.findall(text) for found in [telling(word)] if found is not None)


def coverage(words: AbstractSet[str], text: str) -> float:
    """Which share of a question's words a text holds."""
    return len(words & stems(text)) / len(words)


def _inflected(rng: random.Random, text: str) -> str:
    def change(match: re.Match[str]) -> str:
        word = match[0]
        if len(word) < 5 or not word.islower() or rng.random() > 0.12:
            return word
        if word.endswith("s"):
            return word[:-1]
        if word.endswith("ing"):
            return word[:-3]
        return f"{word}s"

    return WORD.sub(change, text)


def _keywords(rng: random.Random, telling: list[str], rarity: Mapping[str, int]) -> str:
    ranked = sorted(telling, key=lambda word: rarity.get(word.lower(), 0) + rng.random() * 30)
    chosen = ranked[: rng.randint(2, 4)]
    if rng.random() < 0.6:
        chosen.sort(key=telling.index)
    else:
        rng.shuffle(chosen)
    return rng.choice([" ", " ", " and ", ", "]).join(chosen)


def _phrase(rng: random.Random, sentence: str, rarity: Mapping[str, int]) -> str | None:
    words = list(WORD.finditer(sentence))
    telling = [index for index, word in enumerate(words) if word[0].lower() not in STOP]
    if len(telling) < 2:
        return None
    telling.sort(key=lambda index: rarity.get(words[index][0].lower(), 0) + rng.random() * 60)
    middle = telling[0]
    near = [index for index in telling if 0 < abs(index - middle) <= 4]
    other = rng.choice(near) if near else middle
    first, last = sorted((middle, other))
    phrase = " ".join(sentence[words[first].start() : words[last].end()].split())
    return phrase if not set(phrase) & set('."\n') else None


def _inverted(rng: random.Random, sentence: str, forms: tuple[str, ...]) -> str | None:
    found = AUXILIARY.search(sentence)
    if found is None or not 1 <= len(sentence[: found.start()].split()) <= 7 or "," in sentence[: found.start()]:
        return None
    subject = " ".join(sentence[: found.start()].split())
    rest = sentence[found.end() :].rstrip(".!?").split()
    rest = rest[: rng.randint(2, 7)]
    while rest and rest[-1].lower().strip(",;:") in STOP:
        rest.pop()
    if subject[1:2].islower():
        subject = subject[0].lower() + subject[1:]
    aux = found[0] if found[0] != "cannot" else "can"
    return rng.choice(forms).format(aux=aux, subject=subject, rest=" ".join(rest).rstrip(",;:"))


def _imperative(rng: random.Random, sentence: str, forms: tuple[str, ...]) -> str | None:
    first, _, rest = sentence.partition(" ")
    verb = first.lower()
    verb = verb[:-1] if verb.endswith("s") and verb[:-1] in VERBS else verb
    if verb not in VERBS:
        return None
    words = rest.rstrip(".!?").split()[: rng.randint(3, 8)]
    while words and words[-1].lower().strip(",;:") in STOP:
        words.pop()
    return rng.choice(forms).format(verb=verb, rest=" ".join(words).rstrip(",;:")) if words else None


def ask(rng: random.Random, sentence: str, rarity: Mapping[str, int], *, held_out: bool) -> Question | None:
    """A question whose telling words come from the sentence, or None where it yields none this time."""
    telling = list(dict.fromkeys(word for word in WORD.findall(sentence) if word.lower() not in STOP and len(word) > 1))
    if len(telling) < 2:
        return None
    kind = rng.random()
    text: str | None = None
    forms: tuple[str, ...]
    if kind < 0.3:
        text = _inverted(rng, sentence, INVERTED_FORMS_HELD_OUT if held_out else INVERTED_FORMS)
        text = text or _imperative(rng, sentence, IMPERATIVE_FORMS_HELD_OUT if held_out else IMPERATIVE_FORMS)
    if text is None and kind < 0.7:
        phrase = _phrase(rng, sentence, rarity)
        forms = PHRASE_FORMS_HELD_OUT if held_out else PHRASE_FORMS
        text = rng.choice(forms).format(p=phrase) if phrase else None
    if text is None:
        forms = KEYWORD_FORMS_HELD_OUT if held_out else KEYWORD_FORMS
        text = rng.choice(forms).format(k=_keywords(rng, telling, rarity))
    return finish(rng, text)


def finish(rng: random.Random, text: str) -> Question | None:
    """The unevenness of people: inflections, lower case, a missing question mark."""
    text = " ".join(_inflected(rng, text).split())
    text = text[0].upper() + text[1:] if rng.random() < 0.6 else text
    text = text.lower() if rng.random() < 0.15 else text
    text = text.rstrip("?") if rng.random() < 0.15 else text
    words = stems(text)
    return Question(text, words) if words else None
