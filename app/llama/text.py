"""From the bytes of tokens to text that may be sent: whole characters, and no beginning of a stop string."""

import codecs
from collections.abc import Sequence


class AnswerText:
    """The text of one answer as it grows. stop: strings that end it and are not part of it."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, piece: bytes) -> str:
        """Add a token's bytes; get what may be sent now. After a stop string everything is empty."""
        text = self._decode(piece)
        if not self._stop:
            return text
        if self.stopped or not text:
            return ""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        if found:  # the one that is complete first, so that it does not matter how tokens cut the text
            self.stopped = True
            sure, self._held = self._held[: min(found)[1]], ""
        else:
            end = len(self._held) - self._unsure()
            sure, self._held = self._held[:end], self._held[end:]
        return sure

    def finish(self) -> str:
        """What was held back, once no more tokens come. Bytes of an unfinished character are dropped."""
        rest, self._held = self._held, ""
        return rest

    def _unsure(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = min(len(self._held), max(map(len, self._stop)) - 1)
        return next((size for size in range(longest, 0, -1) if self._may_stop(self._held[-size:])), 0)

    def _may_stop(self, end: str) -> bool:
        return any(stop.startswith(end) for stop in self._stop)
