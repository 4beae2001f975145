"""How long a decode step takes by its number of rows, learnt from the steps themselves. Pure.

Rows are counted in powers of two, with the median of the newest times for each, which a single slow step does not move;
between them the time is interpolated.
"""

from bisect import bisect_left
from collections import deque

import numpy as np

NEWEST = 5  # steps whose median counts: an old load is forgotten after three
FEWEST_ROWS = 16  # a prompt gets on by this many tokens a step, however slow the machine is


class Pace:
    """The time of a step as a function of its rows. most: rows of the largest step."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._rows = 2.0 ** np.arange(int(most).bit_length() + 1)
        self._newest = [deque[float](maxlen=NEWEST) for _ in self._rows]
        self._known: tuple[list[float], list[float]] | None = None

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        at = max(0, (rows - 1).bit_length())
        self._newest[at].append(seconds * (self._rows[at] / rows if rows > FEWEST_ROWS else 1.0))
        self._known = None

    def seconds(self, rows: int) -> float:
        """Expected time; beyond what was seen, that of the largest step that was. Before the first step 0."""
        known_rows, known_seconds = self._table()
        at = bisect_left(known_rows, rows)
        if at == len(known_rows):
            return known_seconds[-1] if known_seconds else 0.0
        if at == 0:
            return known_seconds[0]
        part = (rows - known_rows[at - 1]) / (known_rows[at] - known_rows[at - 1])
        return known_seconds[at - 1] + part * (known_seconds[at] - known_seconds[at - 1])

    def rows_within(self, seconds: float) -> int:
        """The largest step that ends in time. What was not seen is taken to be as slow for each row as the nearest."""
        known_rows, known_seconds = self._table()
        if not known_rows:
            return FEWEST_ROWS
        if seconds >= known_seconds[-1]:
            rows = known_rows[-1] * seconds / known_seconds[-1]
        else:
            rows = float(np.interp(seconds, known_seconds, known_rows))
        return int(min(self._most, max(FEWEST_ROWS, rows)))

    def _table(self) -> tuple[list[float], list[float]]:
        if self._known is None:
            seen = [
                (rows, sorted(times)[len(times) // 2])
                for rows, times in zip(self._rows, self._newest, strict=True)
                if times
            ]
            seconds = np.maximum.accumulate([time for _, time in seen]) if seen else np.zeros(0)
            self._known = [float(rows) for rows, _ in seen], seconds.tolist()
        return self._known
