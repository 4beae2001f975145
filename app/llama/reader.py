"""A stretch of an answer in which calls stand, read character by character, and told as it is read. Pure.

What a family writes between its marks is read by a coroutine of that family (json_calls.py, xml_calls.py), which is
sent each character and says here what it understood. A call begins when its function was offered and its arguments are
on their way; from then on its arguments are told piece by piece. What is malformed before that is no call at all;
behind it, the call stays as incomplete as it is.
"""

from collections.abc import Callable, Generator, Mapping
from typing import TypeVar

from app.llama.json_scan import WHITE, JsonScan, MalformedError
from app.messages import JsonSchema, ToolCallDelta

T = TypeVar("T")
Steps = Generator[None, str, T]  # is sent a character at a time, and returns what they made
LONGEST_NAME = 256  # characters of a function's or a parameter's name


class Reader:
    """Reads one stretch. tools: the parameters' schemas of the functions that may be called, by name.

    first: the number of its first call; most: calls to read; new_id: makes ids of calls.
    """

    def __init__(
        self,
        family: "Callable[[Reader], Steps[None]]",
        tools: Mapping[str, JsonSchema],
        *,
        first: int = 0,
        most: int | None = None,
        new_id: Callable[[], str],
    ) -> None:
        self.tools = tools
        self.text = ""  # all that was read
        self.settled = 0  # characters of it that were told, or need not be
        self.begun = self.complete = 0  # calls
        self.done = self.failed = False
        self.arguments: JsonScan | None = None  # those that are being told as they are written
        self.between = False  # where a parameter of XML may begin, and nothing of it was read yet
        self._first, self._most, self._new_id = first, most, new_id
        self._at, self._ahead = 0, ""
        self._told: list[ToolCallDelta] = []
        self._pieces: list[str] = []
        self._steps = family(self)
        next(self._steps)

    def read(self, text: str) -> tuple[tuple[ToolCallDelta, ...], int]:
        """Read on: what that told, and how many characters were read. Then the stretch is done, or it has failed."""
        taken = 0
        for taken, char in enumerate(text, start=1):  # noqa: B007 - counted
            self._at += 1
            try:
                self._steps.send(char)
            except StopIteration:
                self.done = True
                break
            except (ValueError, RecursionError):
                self.failed = True
                break
        self.text += text[:taken]
        self._flush()
        told, self._told = tuple(self._told), []
        return told, taken

    # What the families say

    def begin(self, name: str) -> None:
        """A call of a function begins. Raises MalformedError where nobody offered it."""
        if name not in self.tools:
            raise MalformedError(name)
        self._flush()
        self._told.append(ToolCallDelta(self._first + self.begun, id=self._new_id(), name=name))
        self.begun += 1
        self.settle()

    def tell(self, arguments: str) -> None:
        """The next piece of its arguments."""
        self._pieces.append(arguments)
        self.settle()

    def end(self) -> bool:
        """Its arguments are complete. Returns whether more calls may follow."""
        self.arguments, self.between = None, False
        self.complete += 1
        self.settle()
        return self.complete != self._most

    def settle(self) -> None:
        """What was read so far is no text, whatever follows."""
        self.settled = self._at

    def _flush(self) -> None:
        if self._pieces:
            self._told.append(ToolCallDelta(self._first + self.begun - 1, "".join(self._pieces)))
            self._pieces = []

    # What the families are made of

    def blank(self) -> Steps[str]:
        """White space. Returns the character behind it."""
        char, self._ahead = self._ahead or (yield), ""
        while char in WHITE:
            char = yield
        return char

    def exactly(self, mark: str) -> Steps[None]:
        """These characters and no other."""
        for expected in mark:
            if (yield) != expected:
                raise MalformedError(mark)

    def until(self, mark: str, longest: int = LONGEST_NAME) -> Steps[str]:
        """What comes before a mark, which is read too."""
        found = ""
        while not found.endswith(mark):
            if len(found) > longest + len(mark):
                raise MalformedError(found)
            found += yield
        return found.removesuffix(mark)

    def value(self, first: str) -> Steps[str]:
        """A whole value of JSON. first: its first character."""
        scan, text = JsonScan(), [first]
        scan.push(first)
        while not scan.done:
            char = yield
            if not scan.push(char):
                self._ahead = char
                break
            text.append(char)
        return "".join(text)

    def told_value(self, first: str) -> Steps[None]:
        """An object of JSON, the arguments of the call that began, told as it comes."""
        self.arguments = JsonScan()
        char = first
        while True:
            self.arguments.push(char)
            self.tell(char)
            if self.arguments.done:
                return
            char = yield
