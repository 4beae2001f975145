"""The regular expressions of JSON Schema as GBNF, and the literals and character classes that both are made of. Pure.

Parsed by Python's own parser. What only backtracking can match (looking around, back references, word boundaries) is
no regular language in a grammar's reach, and is refused.
"""

import re
import re._constants as sre  # type: ignore[import-not-found]  # not public, and stable for decades
import re._parser as parser  # type: ignore[import-not-found]
from collections.abc import Callable, Iterable
from typing import Any

from app.errors import InvalidRequest

MOST = 64  # repetitions of `*` and `+`
CLASSES = {
    sre.CATEGORY_DIGIT: "0-9",
    sre.CATEGORY_WORD: "0-9A-Za-z_",
    sre.CATEGORY_SPACE: "\\x20",
    sre.CATEGORY_NOT_DIGIT: "\\x20\\x21\\x23-\\x2F\\x3A-\\x5B\\x5D-\\x7E",
    sre.CATEGORY_NOT_WORD: "\\x20\\x21\\x23-\\x2F\\x3A-\\x40\\x5B\\x5D\\x5E\\x60\\x7B-\\x7E",
    sre.CATEGORY_NOT_SPACE: "\\x21\\x23-\\x5B\\x5D-\\x7E\\u00A1-\\u167F\\u2010-\\u2027\\u3001-\\uD7FF"
    "\\U00010000-\\U0010FFFF",
}
"""What all dialects of regular expressions agree on, and needs no escape in JSON. Negated, the first three only."""


class PatternError(ValueError):
    """What in a pattern no grammar can hold."""


def literal(text: str) -> str:
    """A text as GBNF."""
    return '"' + "".join(_escaped(letter, '"\\') for letter in text) + '"'


def character_class(letters: Iterable[str], *, negated: bool = False) -> str:
    """One of these letters, or any but these that may stand in a JSON string without an escape."""
    inner = "".join(_escaped(letter, '[]^-\\"') for letter in letters)
    return f'[^"\\\\\\x7F\\x00-\\x1F{inner}]' if negated else f"[{inner}]"


def pattern(text: Any, rule: Callable[[str, str], str]) -> str:
    """The inside of a JSON string that matches somewhere, or from ^ to $. rule: makes a rule of a kind and expression.

    Raises PatternError.
    """
    if not isinstance(text, str):
        raise InvalidRequest("'pattern' must be a string.", "pattern")
    try:
        parsed = list(parser.parse(text))
    except (re.error, OverflowError, RecursionError) as error:
        raise PatternError(f"it does not parse, {error}") from error
    begins = bool(parsed) and parsed[0] in ((sre.AT, sre.AT_BEGINNING), (sre.AT, sre.AT_BEGINNING_STRING))
    ends = bool(parsed) and parsed[-1] in ((sre.AT, sre.AT_END), (sre.AT, sre.AT_END_STRING))
    inner = _sequence(parsed[begins : len(parsed) - ends if len(parsed) > begins else None], rule)
    around = f"char{{0,{MOST}}}"
    return " ".join(filter(None, ("" if begins else around, f"({inner})", "" if ends else around)))


def _sequence(parsed: Iterable[tuple[Any, Any]], rule: Callable[[str, str], str]) -> str:
    return " ".join(_item(kind, given, rule) for kind, given in parsed) or '""'


def _item(kind: Any, given: Any, rule: Callable[[str, str], str]) -> str:  # noqa: PLR0911 - a case a kind
    if kind is sre.LITERAL:
        return _in_string(given)
    if kind is sre.NOT_LITERAL:
        return character_class([chr(given)], negated=True)
    if kind is sre.ANY:
        return character_class([], negated=True)
    if kind is sre.IN:
        return _class(given)
    if kind is sre.BRANCH:
        return "(" + " | ".join(_sequence(branch, rule) for branch in given[1]) + ")"
    if kind is sre.SUBPATTERN:
        _, added, removed, inner = given
        if added or removed:
            raise PatternError("it switches flags")
        return f"({_sequence(inner, rule)})"
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        least, most, inner = given
        return _repetition(least, most, inner, rule)
    raise PatternError(f"it uses {str(kind).lower()}")


def _repetition(least: int, most: int, inner: Any, rule: Callable[[str, str], str]) -> str:
    most = max(least, MOST) if most == sre.MAXREPEAT else most
    if most > 256:
        raise PatternError(f"it repeats {most} times, the most is 256")
    if most > 1 and (inner.getwidth()[0] == 0 or (len(inner) == 1 and _repeats(inner[0])) or _depth(inner) > 1):
        raise PatternError("it repeats what repeats itself, in too many ways to follow")
    return f"{rule('repeated', _sequence(inner, rule))}{{{least},{most}}}"


def _repeats(part: tuple[Any, Any]) -> bool:
    """Whether a part is a repetition: `(a+)+` can be cut in two to the n ways."""
    kind, given = part
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
        return bool(given[1] > 1)
    return kind is sre.SUBPATTERN and len(given[3]) == 1 and _repeats(given[3][0])


def _depth(parsed: Iterable[tuple[Any, Any]]) -> int:
    """How many repetitions stand within each other."""
    deepest = 0
    for kind, given in parsed:
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            deepest = max(deepest, (given[1] > 1) + _depth(given[2]))
        elif kind is sre.SUBPATTERN:
            deepest = max(deepest, _depth(given[3]))
        elif kind is sre.BRANCH:
            deepest = max(deepest, *map(_depth, given[1]))
    return deepest


def _class(given: Iterable[tuple[Any, Any]]) -> str:
    members = list(given)
    negated = bool(members) and members[0][0] is sre.NEGATE
    inner, escapes = "", []
    for kind, what in members[negated:]:
        if kind is sre.LITERAL:
            if what < 32 or chr(what) in '"\\\x7f':
                escapes.append(_in_string(what))
            else:
                inner += _escaped(chr(what), "[]^-\\")
        elif kind is sre.RANGE:
            inner += _range(*what)
        elif kind is sre.CATEGORY and what in CLASSES and not (negated and str(what).startswith("CATEGORY_NOT")):
            inner += CLASSES[what]
        else:
            raise PatternError(f"it has {str(what).lower()} in a class")
    if negated:
        return f'[^"\\\\\\x7F\\x00-\\x1F{inner}]'
    ways = ([f"[{inner}]"] if inner else []) + escapes
    if not ways:
        raise PatternError("it has an empty class")
    return f"({' | '.join(ways)})"


def _range(first: int, last: int) -> str:
    """A range of letters, without those that need an escape in JSON."""
    parts, start = "", max(first, 32)
    for hole in sorted({ord('"'), ord("\\"), 0x7F}):
        if start <= hole <= last:
            if start < hole:
                parts += f"{_hex(start)}-{_hex(hole - 1)}"
            start = hole + 1
    return parts + (f"{_hex(start)}-{_hex(last)}" if start <= last else "")


def _in_string(code: int) -> str:
    """A character as it stands in a JSON string."""
    if chr(code) in '"\\':
        return literal("\\" + chr(code))
    named = {8: "b", 9: "t", 10: "n", 12: "f", 13: "r"}
    if code < 32 or code == 0x7F:
        return literal(f"\\{named[code]}" if code in named else f"\\u{code:04x}")
    return literal(chr(code))


def _escaped(letter: str, special: str) -> str:
    return _hex(ord(letter)) if letter in special or not letter.isprintable() else letter


def _hex(code: int) -> str:
    return f"\\x{code:02X}" if code < 256 else f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
