"""What stands in front of a question: system prompts such as clients send, from a sentence to thousands of tokens.

Prose, code, rules as coding agents are given them, and random words, mixed, so that the demo model learns to look past
them. The last wordings of each list are held out, as are the documents that evaluation's writer draws prose from.
"""

import json
import math
import random
from collections.abc import Callable, Sequence

from train import demo_handbook
from train.demo_text import Document
from train.demo_words import LISTS

HELD_OUT_SHARE = 5  # one wording in five, the last ones of its list
LONGEST = 8_000  # characters: about 2,500 tokens
SHORTEST = 60


def length(rng: random.Random) -> int:
    """Characters of a front: short ones are likelier than ten times longer ones, which cost ten times as much."""
    return int(SHORTEST * math.pow(LONGEST / SHORTEST, rng.random() ** 1.3))


def write(
    rng: random.Random, characters: int, *, documents: Sequence[Document], words: Sequence[str], held_out: bool
) -> str:
    """A text of so many characters. documents: that its prose is from. words: that its random parts are made of."""
    kinds: list[Callable[[], str]] = [
        lambda: _prose(rng, documents),
        lambda: demo_handbook.write(rng, held_out=held_out).text,
        lambda: _rules(rng, words, held_out=held_out),
        lambda: _code(rng, words),
        lambda: _noise(rng, words),
    ]
    opening = _opening(rng, held_out=held_out)
    blocks = [opening] if rng.random() < 0.7 else []
    chosen = rng.choices(kinds, [3, 1, 4, 2, 1], k=2)  # a prompt is of one or two kinds, not of all
    while sum(len(block) + 2 for block in blocks) < characters:
        blocks.append(rng.choice(chosen)())
    text = "\n\n".join(blocks)[:characters]
    return text.rsplit(" ", 1)[0].strip() if len(text) == characters else text.strip()


def kept(wordings: Sequence[str], *, held_out: bool) -> Sequence[str]:
    """Those of a list's wordings that training sees, or the others."""
    border = len(wordings) - max(1, len(wordings) // HELD_OUT_SHARE)
    return wordings[border:] if held_out else wordings[:border]


def _opening(rng: random.Random, *, held_out: bool) -> str:
    opening = rng.choice(kept(LISTS["front_openings"], held_out=held_out))
    return opening.format(name="".join(rng.choice(LISTS["syllables"]) for _ in range(3)).capitalize())


def _prose(rng: random.Random, documents: Sequence[Document]) -> str:
    found = rng.choice(documents)
    start = rng.randrange(len(found.spans))
    return "\n".join(found.sentence(number) for number in range(start, min(start + 8, len(found.spans))))


def _rules(rng: random.Random, words: Sequence[str], *, held_out: bool) -> str:
    """A heading and a list of rules, as agents are instructed."""

    def phrase() -> str:
        if rng.random() < 0.5:
            return f"{rng.choice(LISTS['verbs'])} the {rng.choice(LISTS['object'] + LISTS['document'])}"
        return " ".join(rng.choice(words) for _ in range(rng.randint(1, 4)))

    forms = kept(LISTS["front_rules"], held_out=held_out)
    mark = rng.choice(["- ", "* ", "", "{}. "])
    heading = rng.choice(["# {}\n", "## {}\n", "<{}>\n", "{}:\n", ""])
    rules = [
        mark.format(number + 1) + rng.choice(forms).format(a=phrase(), b=phrase())
        for number in range(rng.randint(2, 9))
    ]
    return heading.format(rng.choice(kept(LISTS["front_headings"], held_out=held_out))) + "\n".join(rules)


def _code(rng: random.Random, words: Sequence[str]) -> str:
    """Made-up code, settings or a list of files."""

    def name() -> str:
        return "_".join(rng.choice(words) for _ in range(rng.randint(1, 2))).lower()

    kind = rng.random()
    if kind < 0.5:
        lines = [f"def {name()}({name()}, {name()}={rng.randint(0, 99)}):"]
        lines += [f"    {name()} = {name()}.{name()}({name()})" for _ in range(rng.randint(1, 5))]
        return "```python\n" + "\n".join([*lines, f"    return {name()}"]) + "\n```"
    if kind < 0.75:
        settings = {name(): rng.choice([name(), rng.randint(0, 999), True]) for _ in range(rng.randint(2, 7))}
        return json.dumps(settings, indent=rng.choice([None, 2]))
    return "\n".join(f"{name()}/{name()}.{rng.choice(['py', 'md', 'ts', 'toml'])}" for _ in range(rng.randint(3, 10)))


def _noise(rng: random.Random, words: Sequence[str]) -> str:
    sentences = (" ".join(rng.choice(words) for _ in range(rng.randint(4, 14))) for _ in range(rng.randint(2, 6)))
    return " ".join(f"{sentence.capitalize()}." for sentence in sentences)
