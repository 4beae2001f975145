"""One answer as it grows: from the bytes of tokens to thoughts, text and tool calls that may be sent.

Nothing is sent that might turn out to be something else: an unfinished character, the beginning of a stop string or of
a mark, a tool call before it is complete. A call that was cut short, or is malformed, or names a function that nobody
offered, is text after all.
"""

import codecs
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from app.llama.syntax import Syntax
from app.messages import ToolCall, ToolCallDelta


@dataclass(slots=True)
class Piece:
    """What may be sent: thoughts come before text, text before calls."""

    reasoning: str = ""
    text: str = ""
    calls: tuple[ToolCallDelta, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasoning or self.text or self.calls)


class Answer:
    """Parses one answer. stop: strings that end its text and are not part of it.

    syntax: None leaves everything as text. offered: names of functions; none, and no call is looked for. thinking:
    whether the prompt ended within the thoughts. parallel: whether more than one call may come.
    """

    def __init__(
        self,
        stop: Sequence[str] = (),
        syntax: Syntax | None = None,
        offered: Collection[str] = (),
        *,
        thinking: bool = False,
        parallel: bool = True,
    ) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._stop, self._syntax, self._offered = tuple(stop), syntax, frozenset(offered)
        self._thoughts = syntax.thoughts if syntax else None
        self._opening = syntax.opening if syntax and offered else ""
        self._whole = bool(syntax and offered and not syntax.opening)  # the answer as a whole may be a call
        self._held = ""
        self._state = "thinking" if thinking and self._thoughts else "beginning"
        self._behind = "text"
        self._plain = not (self._thoughts or self._opening or self._whole or self._stop)
        self._said, self._parallel = False, parallel
        self._after_call = False  # white space that comes now is text only if text follows it
        self.stopped: str | None = None
        self.calls = 0

    @property
    def thinking(self) -> bool:
        """Whether the newest token belongs to the thoughts."""
        return self._state == "thinking"

    @property
    def calling(self) -> str | None:
        """What was written of a call that has begun, behind its mark; None outside of calls."""
        if self._state == "calling":
            return self._held
        if self._whole and not self._said:
            begun = self._held.lstrip().removeprefix("<|python_tag|>").lstrip()
            return begun if begun.startswith("{") else None
        return None

    @property
    def complete(self) -> bool:
        """Whether the one call that was allowed has come."""
        return bool(self.calls) and not self._parallel

    def push(self, data: bytes) -> Piece:
        """Add a token's bytes; get what may be sent now. After a stop string everything is empty."""
        text = self._decode(data)
        if self._plain:
            return Piece(text=text)
        piece = Piece()
        if text and self.stopped is None:
            self._held += text
            while self._advance(piece):
                pass
        return piece

    def finish(self) -> Piece:
        """What was held back, once no more tokens come. Bytes of an unfinished character are dropped."""
        piece, rest = Piece(), self._held
        self._held = ""
        if self._state == "thinking":
            piece.reasoning = rest.rstrip("\n")
        elif self._state == "calling":
            self._call(piece, rest, self._opening + rest)
        elif self._whole and not self._said and rest.strip():
            self._call(piece, rest.strip(), rest)
        elif rest.strip() or not self._after_call:
            piece.text = rest
        return piece

    def _advance(self, piece: Piece) -> bool:
        """Take one step through what is held; False when more text is needed."""
        return bool(getattr(self, f"_{self._state}")(piece))

    def _beginning(self, piece: Piece) -> bool:  # noqa: ARG002 - one signature
        """White space, and then either thoughts or the text."""
        begun = self._held.lstrip()
        mark = self._thoughts[0] if self._thoughts else ""
        if mark and begun.startswith(mark):
            self._held, self._state, self._behind = begun[len(mark) :], "pausing", "thinking"
            return True
        if mark and mark.startswith(begun):
            return False
        self._state = "text"
        return True

    def _thinking(self, piece: Piece) -> bool:
        assert self._thoughts
        mark = self._thoughts[1]
        thought, found, rest = self._held.partition(mark)
        if found:
            piece.reasoning += thought.rstrip("\n")
            self._held, self._state, self._behind = rest, "pausing", "text"
            return True
        sure = self._held[: len(self._held) - _unsure(self._held, (mark,))].rstrip("\n")
        piece.reasoning += sure
        self._held = self._held[len(sure) :]
        return False

    def _pausing(self, piece: Piece) -> bool:  # noqa: ARG002 - one signature
        """The line ends before thoughts and before text."""
        self._held = self._held.lstrip("\n")
        if self._held:
            self._state = self._behind
        return bool(self._held)

    def _text(self, piece: Piece) -> bool:
        if self._whole and not self._said:
            begun = self._held.lstrip()
            if not begun or begun[0] in "{[" or "<|python_tag|>".startswith(begun[:14]):
                return False  # perhaps a call: it is told from its end
        marks = tuple(filter(None, (*self._stop, self._opening)))
        found = [(at + len(mark), at, mark) for mark in marks if (at := self._held.find(mark)) >= 0]
        if not found:
            sure = self._held[: len(self._held) - _unsure(self._held, marks)]
            sure = sure.rstrip("\n") if self._opening else sure  # line ends before a call are no text
            if sure.strip() or not self._after_call:
                self._say(piece, len(sure))
            return False
        end, at, mark = min(found)  # the one that is complete first, so that it does not matter how tokens cut the text
        if mark == self._opening and mark not in self._stop:
            before = len(self._held[:at].rstrip("\n"))
            self._say(piece, before)
            self._held, self._state = self._held[end - before :], "calling"
            return True
        self._say(piece, at)
        self.stopped, self._held = mark, ""
        return False

    def _calling(self, piece: Piece) -> bool:
        """Until the closing mark; without one, until the end of the answer."""
        assert self._syntax
        if not self._syntax.closing:
            return False
        body, found, rest = self._held.partition(self._syntax.closing)
        if not found:
            return False
        self._held, self._state = rest, "text"
        self._call(piece, body, f"{self._opening}{body}{self._syntax.closing}")
        return bool(rest)

    def _call(self, piece: Piece, body: str, written: str) -> None:
        """The body as calls, or what was written as text."""
        assert self._syntax
        calls = self._syntax.calls(body, self._offered)
        if calls and not self._parallel:
            calls = calls[: max(0, 1 - self.calls)]
        if calls is None:
            piece.text += written
            self._said, self._after_call = True, False
        else:
            piece.calls += tuple(
                delta for number, call in enumerate(calls, self.calls) for delta in _deltas(number, call)
            )
            self.calls += len(calls)
            self._after_call = True

    def _say(self, piece: Piece, end: int) -> None:
        said = self._held[:end]
        if self._after_call and not said.strip():
            said = ""  # the line ends between calls
        self._after_call &= not said
        piece.text += said
        self._said |= bool(said)
        self._held = self._held[end:]


def _deltas(number: int, call: ToolCall) -> tuple[ToolCallDelta, ToolCallDelta]:
    return ToolCallDelta(number, id=call.id, name=call.name), ToolCallDelta(number, call.arguments)


def _unsure(held: str, marks: Sequence[str]) -> int:
    """Length of the longest end of the held text with which a mark begins."""
    if not marks:
        return 0
    longest = min(len(held), max(map(len, marks)) - 1)
    return next((size for size in range(longest, 0, -1) if any(mark.startswith(held[-size:]) for mark in marks)), 0)
