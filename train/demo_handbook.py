"""Made-up company documents for the demo model: facts with the questions that people ask about them.

Every fact is a sentence with slots and several wordings of the question; the last wording of each is held out: training
never sees it, evaluation asks nothing else. Names, numbers and places are drawn anew each time, so nothing can be
learnt by heart but the way from a question to a sentence.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from train.demo_words import LISTS, PATTERNS, Pattern

SLOT = re.compile(r"\{(\w+)\}")


def _coined(rng: random.Random) -> str:
    return "".join(rng.choice(LISTS["syllables"]) for _ in range(rng.randint(2, 4))).capitalize()


def _number(rng: random.Random) -> str:
    number = rng.choice([rng.randint(2, 12), rng.randint(2, 99), rng.randint(100, 999), rng.randint(1, 20) * 5])
    return str(number)


def _amount(rng: random.Random) -> str:
    value = rng.choice([rng.randint(1, 99), rng.randint(1, 40) * 25, rng.randint(1000, 99999)])
    unit = rng.choice(["{} euros", "${:,}", "{:,} dollars", "€{}", "{} pounds", "CHF {}"])
    return unit.format(value)


def _time(rng: random.Random) -> str:
    return rng.choice(
        [
            f"{rng.randint(0, 23)}:{rng.choice(['00', '15', '30', '45'])}",
            f"{rng.randint(1, 12)} {rng.choice(['am', 'pm'])}",
        ]
    )


def _date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.choice(LISTS["month"]), rng.randint(1985, 2031)
    return rng.choice(
        [
            f"{day} {month} {year}",
            f"{month} {day}",
            f"{day} {month}",
            f"{year}-{LISTS['month'].index(month) + 1:02}-{day:02}",
        ]
    )


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    return f"{letters}{rng.choice(['-', '', ' '])}{rng.randint(1, 9999)}"


SLOTS: dict[str, Callable[[random.Random], str]] = {
    "person": lambda r: f"{r.choice(LISTS['first'])} {r.choice(LISTS['last'])}",
    "person2": lambda r: f"{r.choice(LISTS['first'])} {r.choice(LISTS['last'])}",
    "city": lambda r: r.choice(LISTS["city"]),
    "city2": lambda r: r.choice(LISTS["city"]),
    "team": lambda r: r.choice(LISTS["team"]),
    "team2": lambda r: r.choice(LISTS["team"]),
    "thing": lambda r: r.choice(
        [
            r.choice(LISTS["object"]),
            f"{r.choice(LISTS['adjective'])} {r.choice(LISTS['object'])}",
            f"{_coined(r)} {r.choice(LISTS['object'])}",
        ]
    ),
    "things": lambda r: f"{r.choice(LISTS['adjective'])} {r.choice(LISTS['object'])}s",
    "material": lambda r: r.choice(LISTS["material"]),
    "document": lambda r: r.choice(LISTS["document"]),
    "event": lambda r: r.choice(LISTS["event"]),
    "activity": lambda r: r.choice(LISTS["activity"]),
    "purpose": lambda r: r.choice(LISTS["purpose"]),
    "dish": lambda r: r.choice(LISTS["dish"]),
    "ingredient": lambda r: r.choice(LISTS["ingredient"]),
    "animal": lambda r: r.choice(LISTS["animal"]),
    "colour": lambda r: r.choice(LISTS["colour"]),
    "role": lambda r: r.choice(LISTS["role"]),
    "system": lambda r: r.choice(LISTS["system"]),
    "product": lambda r: r.choice(
        [_coined(r), f"{_coined(r)} {_code(r)}", f"{_coined(r)} {r.choice(LISTS['object']).title()}"]
    ),
    "company": lambda r: (
        f"{_coined(r)} {r.choice(['Ltd', 'GmbH', 'Inc', 'Labs', 'Group', 'Partners', 'Foods', 'Systems'])}"
    ),
    "number": _number,
    "number2": _number,
    "amount": _amount,
    "time": _time,
    "time2": _time,
    "date": _date,
    "code": _code,
    "month": lambda r: r.choice(LISTS["month"]),
    "weekday": lambda r: r.choice(LISTS["weekday"]),
    "year": lambda r: str(r.randint(1890, 2030)),
    "unit": lambda r: r.choice(["days", "weeks", "hours", "months", "working days", "business days", "minutes"]),
    "room": lambda r: (
        f"{r.choice(['room', 'hall', 'building', 'floor', 'gate', 'desk'])} {r.choice([_number(r), _code(r)])}"
    ),
    "modal": lambda r: r.choice(["must", "should", "may", "can"]),
}


class Fact(NamedTuple):
    """A sentence and ways to ask for it. words: the slots' values that a question may name."""

    sentence: str
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Handbook:
    """A made-up document. facts: in the order of their sentences in the text."""

    title: str
    text: str
    facts: tuple[Fact, ...]


def _name(rng: random.Random) -> str:
    return "_".join(
        rng.choice(LISTS["object"] + LISTS["system"] + LISTS["activity"]).split()[0] for _ in range(rng.randint(1, 3))
    )


def fact(rng: random.Random, pattern: Pattern, *, held_out: bool) -> Fact:
    """Fill a pattern's slots. held_out: the wordings that are never trained on, instead of those that are."""
    drawn: dict[str, str] = {}

    def fill(match: re.Match[str]) -> str:
        slot = match[1]
        if slot not in drawn:
            drawn[slot] = (
                _name(rng) if slot == "name" else SLOTS[slot.removesuffix("2") if slot not in SLOTS else slot](rng)
            )
        return drawn[slot]

    sentence = SLOT.sub(fill, pattern.sentence)
    wordings = pattern.questions[-1:] if held_out else pattern.questions[:-1]
    return Fact(sentence[0].upper() + sentence[1:], tuple(SLOT.sub(fill, wording) for wording in wordings))


def write(rng: random.Random, *, held_out: bool, facts: int | None = None) -> Handbook:
    """A document of 1 to 12 facts: prose, a list, or under headings. Similar facts beside each other are common."""
    count = facts or rng.randint(1, 12)
    patterns = [rng.choice(PATTERNS) for _ in range(count)]
    if count > 1 and rng.random() < 0.6:
        patterns = [rng.choice(patterns[: max(1, count // 2)]) for _ in range(count)]
    made = tuple(
        {found.sentence: found for found in (fact(rng, pattern, held_out=held_out) for pattern in patterns)}.values()
    )
    style = rng.random()
    if style < 0.5:
        separators = [rng.choice([" ", " ", " ", "\n\n", "\n"]) for _ in made]
    elif style < 0.75:
        mark = rng.choice(["- ", "* ", "1. "])
        separators = [f"\n{mark}" for _ in made]
    else:
        separators = [rng.choice([" ", f"\n\n## {rng.choice(LISTS['headings'])}\n\n", "\n"]) for _ in made]
    text = "".join(separator + found.sentence for separator, found in zip(separators, made, strict=True)).strip()
    title = rng.choice(
        [
            rng.choice(LISTS["titles"]),
            f"{rng.choice(LISTS['team'])}-{rng.choice(LISTS['titles'])}",
            f"{_coined(rng).lower()}_{rng.choice(LISTS['titles'])}",
        ]
    )
    return Handbook(title + rng.choice([".md", ".txt", ".pdf", ".docx", "", ".html"]), text, made)
