"""JSON as it comes, character by character: whether it can still become a value, and where that ends. Pure.

RFC 8259, nested at most DEPTH levels deep, because whoever parses it recurses.
"""

from string import digits, hexdigits

DEPTH = 512
WHITE = " \t\n\r"
ESCAPES = '"\\/bfnrt'
LITERALS = {"t": "rue", "f": "alse", "n": "ull"}
EXPONENT = dict.fromkeys("eE", "e")
NUMBERS: dict[str, dict[str, str]] = {  # what may come at each place of a number, and where that leads
    "minus": {"0": "zero", **dict.fromkeys("123456789", "integer")},
    "zero": {".": "point", **EXPONENT},
    "integer": {**dict.fromkeys(digits, "integer"), ".": "point", **EXPONENT},
    "point": dict.fromkeys(digits, "fraction"),
    "fraction": {**dict.fromkeys(digits, "fraction"), **EXPONENT},
    "e": {**dict.fromkeys("+-", "sign"), **dict.fromkeys(digits, "exponent")},
    "sign": dict.fromkeys(digits, "exponent"),
    "exponent": dict.fromkeys(digits, "exponent"),
}
BEGINNINGS = {"-": "minus", "0": "zero", **dict.fromkeys("123456789", "integer")}
COMPLETE = frozenset({"zero", "integer", "fraction", "exponent"})  # where a number may end


class MalformedError(ValueError):
    """What was written can no longer become what it has to be."""


class JsonScan:
    """One value. done: it is complete, which a number is only with the character behind it.

    brackets: those that are open, the outermost first. place: what may come next. left: of a literal the letters, of
    an escape as many as there are digits to come. key: whether the string is one.
    """

    def __init__(self) -> None:
        self.brackets, self.place, self.left, self.key, self.done = "", "value", "", False, False

    @property
    def within(self) -> bool:
        """Whether a string is open."""
        return self.place in ("string", "escape", "digits")

    def push(self, char: str) -> bool:
        """Take the next character. False where the value ended before it. Raises MalformedError."""
        assert not self.done
        if self.place in NUMBERS:
            follower = NUMBERS[self.place].get(char)
            if follower:
                self.place = follower
                return True
            if self.place not in COMPLETE:
                raise MalformedError(char)
            self._end()
            if not self.brackets:
                return False
        if self.within or self.place == "literal":
            self._within(char)
        elif char not in WHITE:
            self._between(char)
        return True

    def _within(self, char: str) -> None:
        """A string or a literal goes on."""
        if self.place == "string":
            self._in_string(char)
        elif self.place == "escape":
            if char != "u" and char not in ESCAPES:
                raise MalformedError(char)
            self.place, self.left = ("digits", "xxxx") if char == "u" else ("string", "")
        elif self.place == "digits":
            if char not in hexdigits:
                raise MalformedError(char)
            self.left = self.left[1:]
            self.place = "digits" if self.left else "string"
        else:
            if char != self.left[0]:
                raise MalformedError(char)
            self.left = self.left[1:]
            if not self.left:
                self._end()

    def _in_string(self, char: str) -> None:
        if char < " ":
            raise MalformedError(char)
        if char == "\\":
            self.place = "escape"
        elif char == '"' and self.key:
            self.place = "colon"
        elif char == '"':
            self._end()

    def _between(self, char: str) -> None:
        """Something begins or ends."""
        place = self.place
        if place == "colon" and char == ":":
            self.place = "value"
        elif place in ("first key", "key") and char == '"':
            self.place, self.key = "string", True
        elif place == "behind" and char == ",":
            self.place = "key" if self.brackets[-1] == "{" else "value"
        elif place in ("behind", "first key", "first item") and f"{self.brackets[-1]}{char}" in ("{}", "[]"):
            self.brackets = self.brackets[:-1]
            self._end()
        elif place in ("value", "first item"):
            self._begin(char)
        else:
            raise MalformedError(char)

    def _begin(self, char: str) -> None:
        if char in "{[" and len(self.brackets) < DEPTH:
            self.brackets += char
            self.place = "first key" if char == "{" else "first item"
        elif char == '"':
            self.place, self.key = "string", False
        elif char in LITERALS:
            self.place, self.left = "literal", LITERALS[char]
        elif char in BEGINNINGS:
            self.place = BEGINNINGS[char]
        else:
            raise MalformedError(char)

    def _end(self) -> None:
        """A value is complete."""
        self.place, self.done = "behind", not self.brackets
