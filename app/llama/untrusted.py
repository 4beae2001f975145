"""Text that users, tools and documents wrote, kept apart from the template's own words through a Jinja rendering.

Every visible character of untrusted text is exchanged, one for one, for a code point of Unicode's private planes.
Whatever a template then does with it (concatenate, slice, pass through macros, dump as JSON) the characters stay
marked, and `segments` finds them in the rendered text. Nothing depends on the template's cooperation, so a lost mark
is impossible rather than unlikely. White space stays as it is: it is never a turn marker, and templates trim it.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self, SupportsIndex

from app.errors import InvalidRequest

FIRST, LAST = 0xF0000, 0x10FFFF  # planes 15 and 16
MARKED = f"[{chr(FIRST)}-{chr(LAST)}]"
RUN = re.compile(rf" ?{MARKED}(?:[\s{MARKED[1:]}*{MARKED})?")  # a space in front belongs to the word behind it


class Segment(NamedTuple):
    """A piece of a prompt. trusted: the template wrote it, so it may hold special tokens."""

    text: str
    trusted: bool


class Alphabet(dict[int, int]):
    """The private code points of one rendering, given out as characters come up. Works with `str.translate`."""

    def __missing__(self, character: int) -> int:
        private = character if chr(character).isspace() else FIRST + len(self)
        if private > LAST:
            raise InvalidRequest(f"The messages hold more than {LAST - FIRST} different characters.", "messages")
        self[character] = private
        return private

    def mark(self, text: str) -> "Untrusted":
        """The text as a template may have it."""
        return Untrusted(text, self)

    def segments(self, rendered: str) -> Iterator[Segment]:
        """Cut what a template rendered into what it wrote itself and what it was given; empty pieces are left out."""
        original = {private: character for character, private in self.items()}
        rendered, end = str.__str__(rendered), 0  # all of it may be one Untrusted
        for run in RUN.finditer(rendered):
            if run.start() > end:
                yield Segment(rendered[end : run.start()], trusted=True)
            yield Segment(run[0].translate(original), trusted=False)
            end = run.end()
        if end < len(rendered):
            yield Segment(rendered[end:], trusted=True)


class Untrusted(str):
    """A marked string that answers a template's questions (`'</think>' in content`, `content.split(…)`) by its text.

    Its characters are the marked ones, so whatever the C side of `str` does with it stays marked; the methods below
    work on the original text instead, and mark what they return.
    """

    __slots__ = ("alphabet", "plain")
    plain: str
    alphabet: Alphabet

    def __new__(cls, text: str, alphabet: Alphabet) -> Self:
        marked = super().__new__(cls, text.translate(alphabet))
        marked.plain, marked.alphabet = text, alphabet
        return marked

    def __str__(self) -> str:
        return self  # str(x), which Jinja calls on everything, must not lose the class

    def __repr__(self) -> str:
        return self.alphabet.mark(repr(self.plain))  # templates print lists of arguments

    def __eq__(self, other: object) -> bool:
        return bool(self.plain == _plain(other))

    def __ne__(self, other: object) -> bool:
        return bool(self.plain != _plain(other))

    def __hash__(self) -> int:
        return hash(self.plain)

    def __lt__(self, other: str) -> bool:
        return bool(self.plain < _plain(other))  # templates sort by names

    def __gt__(self, other: str) -> bool:
        return bool(self.plain > _plain(other))

    def __contains__(self, part: object) -> bool:
        return _plain(part) in self.plain

    def __getitem__(self, index: SupportsIndex | slice) -> str:
        return self.alphabet.mark(self.plain[index])

    def __iter__(self) -> Iterator[str]:
        return map(self.alphabet.mark, self.plain)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.plain if isinstance(value, Untrusted) else value


def _by_text(name: str) -> Callable[..., Any]:
    method = getattr(str, name)

    def answer(self: Untrusted, *args: Any, **kwargs: Any) -> Any:
        result = method(self.plain, *map(_plain, args), **kwargs)
        if isinstance(result, str):
            return self.alphabet.mark(result)
        if isinstance(result, list | tuple):
            return type(result)(map(self.alphabet.mark, result))
        return result

    return answer


for _name in (
    *("strip", "lstrip", "rstrip", "removeprefix", "removesuffix", "replace", "lower", "upper", "title", "capitalize"),
    *("split", "rsplit", "splitlines", "partition", "rpartition", "startswith", "endswith", "find", "rfind", "index"),
    *("rindex", "count", "isdigit", "isalpha", "isalnum", "isnumeric", "isupper", "islower", "isspace"),
):
    setattr(Untrusted, _name, _by_text(_name))


def dump_json(value: Any, **form: Any) -> str:
    """JSON of a value. Where it holds untrusted strings all of it is untrusted: no seams for the tokenizer to see.

    form: as json.dumps has it, but that characters beyond ASCII stay as they are.
    """
    alphabets: list[Alphabet] = []
    dumped = json.dumps(_unmarked(value, alphabets), ensure_ascii=False, **form)
    return alphabets[0].mark(dumped) if alphabets else dumped


def _unmarked(value: Any, alphabets: list[Alphabet]) -> Any:
    if isinstance(value, Untrusted):
        alphabets.append(value.alphabet)
        return value.plain
    if isinstance(value, dict):
        return {_unmarked(key, alphabets): _unmarked(item, alphabets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unmarked(item, alphabets) for item in value]
    return value
