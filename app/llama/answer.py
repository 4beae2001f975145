"""One answer as it grows: from the bytes of tokens to thoughts, text and tool calls that may be sent.

Nothing is sent that might turn out to be something else: an unfinished character, the beginning of a stop string or of
a mark, a tool call before its function is known to be offered and its arguments begin. From there on arguments are sent
as they come. What is malformed or cut short before, or names a function that nobody offered, is text after all. A call
that breaks later stays as it is, incomplete, so that nobody can run it, and text goes on behind it.
"""

import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.llama.reader import Reader
from app.llama.syntax import Syntax
from app.messages import JsonSchema, ToolCallDelta

PYTHON = "<|python_tag|>"  # in front of Llama's calls, sometimes


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

    syntax: None leaves everything as text. tools: the parameters' schemas of the functions that are offered, by name;
    none, and no call is looked for. thinking: whether the prompt ended within the thoughts. parallel: whether more than
    one call may come.
    """

    def __init__(
        self,
        stop: Sequence[str] = (),
        syntax: Syntax | None = None,
        tools: Mapping[str, JsonSchema] | None = None,
        *,
        thinking: bool = False,
        parallel: bool = True,
    ) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._stop, self._syntax, self._tools = tuple(stop), syntax, tools or {}
        self._thoughts = syntax.thoughts if syntax else None
        self._opening = syntax.opening if syntax and tools else ""
        self._whole = bool(syntax and tools and not syntax.opening)  # the answer as a whole may be a call
        self._held = ""
        self._state = "thinking" if thinking and self._thoughts else "beginning"
        self._behind = "text"
        self._plain = not (self._thoughts or self._opening or self._whole or self._stop)
        self._parallel = parallel
        self._after_call = False  # white space that comes now is text only if text follows it
        self._deaf = 0  # characters of what is held in which no mark opens a call: one that proved to be none
        self._reader: Reader | None = None  # of the calls that have begun
        self._mark = ""  # that opened them
        self._begun = 0  # calls, complete or not
        self.stopped: str | None = None
        self.calls = 0  # complete ones

    @property
    def thinking(self) -> bool:
        """Whether the newest token belongs to the thoughts."""
        return self._state == "thinking"

    @property
    def calling(self) -> str | None:
        """What was written of a call that has begun, behind its mark; None outside of calls."""
        return self._reader.text if self._reader else None

    @property
    def complete(self) -> bool:
        """Whether the one call that was allowed has come."""
        return bool(self.calls) and not self._parallel

    @property
    def broken(self) -> bool:
        """Whether a call was begun of which the end never came."""
        return self._begun > self.calls

    def push(self, data: bytes) -> Piece:
        """Add a token's bytes; get what may be sent now. After a stop string everything is empty."""
        text = self._decode(data)
        if self._plain:
            return Piece(text=text)
        piece = Piece()
        if text and self.stopped is None:
            self._held += text
            self._go_on(piece)
        return piece

    def finish(self) -> Piece:
        """What was held back, once no more tokens come; to be called until that is nothing.

        Bytes of an unfinished character are dropped.
        """
        piece = Piece()
        self._go_on(piece)
        if not piece and self._reader:
            self._cut(self._reader)
            self._go_on(piece)
        if not piece and self._held and (self._whole or self._state == "beginning"):
            self._whole, self._state = False, "text"  # neither thoughts nor a call: a stop string may be in it
            self._go_on(piece)
        if piece:
            return piece
        rest, self._held = self._held, ""
        if self._state == "thinking":
            piece.reasoning = rest.rstrip("\n")
        elif rest.strip() or not self._after_call:
            piece.text = rest
        return piece

    def _go_on(self, piece: Piece) -> None:
        """As far as possible. Text behind calls is for the next piece, in which text comes first."""
        while not (piece.calls and self._state == "text") and self._advance(piece):
            pass

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
        if self._whole:
            begun = self._held.lstrip()
            behind = begun.removeprefix(PYTHON).lstrip()
            if not behind or PYTHON.startswith(begun):
                return False  # perhaps a call
            self._whole = behind[0] in "{["
            if self._whole:
                return self._open(self._held[: -len(behind)], behind)
        marks = tuple(filter(None, (*self._stop, self._opening)))
        found = [(at + len(mark), at, mark) for mark in marks if (at := self._find(mark)) >= 0]
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
            return self._open(mark, self._held[end - before :])
        self._say(piece, at)
        self.stopped, self._held = mark, ""
        return False

    def _find(self, mark: str) -> int:
        return self._held.find(mark, self._deaf if mark == self._opening else 0)

    def _open(self, mark: str, held: str) -> bool:
        """What follows may be calls."""
        assert self._syntax
        most = None if self._parallel else 1
        self._reader = self._syntax.reader(self._tools, first=self._begun, most=most)
        self._mark, self._held, self._state = mark, held, "calling"
        return True

    def _calling(self, piece: Piece) -> bool:
        reader = self._reader
        assert reader
        begun, complete = reader.begun, reader.complete
        deltas, taken = reader.read(self._held)
        self._held = self._held[taken:]
        piece.calls += deltas
        self._begun += reader.begun - begun
        self.calls += reader.complete - complete
        if self.complete:
            self._reader, self._state = None, "over"
        elif reader.failed:
            self._close(reader, reader.text[reader.settled :])
        elif reader.done:
            self._close(reader, "")
        return self._state != "calling"

    def _close(self, reader: Reader, rest: str) -> None:
        """No call any more. rest: what was read and is none."""
        self._reader, self._state = None, "text"
        if reader.begun:
            self._held, self._after_call = rest + self._held, True
        else:
            self._held, self._deaf = self._mark + rest + self._held, 1
            self._whole = False

    def _cut(self, reader: Reader) -> None:
        """The answer ended within calls."""
        assert self._syntax
        rest = reader.text[reader.settled :]
        if reader.begun > reader.complete or self._syntax.closing.startswith(rest.strip()):
            rest = rest if not reader.begun else ""  # of a value or a mark that the call lacks
        self._close(reader, rest)

    def _over(self, piece: Piece) -> bool:  # noqa: ARG002 - one signature
        """Whatever comes behind the one call that was allowed is nothing."""
        self._held = ""
        return False

    def _say(self, piece: Piece, end: int) -> None:
        said = self._held[:end]
        self._deaf = 0 if said else self._deaf
        if self._after_call and not said.strip():
            said = ""  # the line ends between calls
        self._after_call &= not said
        piece.text += said
        self._held = self._held[end:]


def _unsure(held: str, marks: Sequence[str]) -> int:
    """Length of the longest end of the held text with which a mark begins."""
    if not marks:
        return 0
    longest = min(len(held), max(map(len, marks)) - 1)
    return next((size for size in range(longest, 0, -1) if any(mark.startswith(held[-size:]) for mark in marks)), 0)
