"""What an answer is worth against what it should have been, and how sure a mean of that is. Pure functions.

Scores of an answer, each from 0 to 1, only those that apply to its reference:

    exact      the same text, but for white space around it
    f1         overlap of words (SQuAD's, Rajpurkar et al. 2016, arXiv:1606.05250, without its articles rule)
    json       where the reference is JSON: the answer is, too
    call       where the reference calls tools: the same functions with the same arguments, in the same order
    call_name  likewise, the names alone
    ended      it came to its end by itself, within the limit
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from app.messages import Message

RESAMPLES = 2000
WORD = re.compile(r"\w+|[^\w\s]")


class Interval(NamedTuple):
    """A mean, and between which values it lies with 95 % confidence."""

    mean: float
    low: float
    high: float
    size: int  # of the sample


def scored(answer: Message, reference: Message, *, ended: bool) -> dict[str, float]:
    """The scores of an answer that apply."""
    scores = {"ended": float(ended)}
    if reference.tool_calls:
        names = [[call.name for call in message.tool_calls] for message in (answer, reference)]
        same = [_calls(answer), _calls(reference)]
        return scores | {"call": float(same[0] == same[1]), "call_name": float(names[0] == names[1])}
    said, wanted = answer.content.strip(), reference.content.strip()
    scores |= {"exact": float(said == wanted), "f1": f1(said, wanted)}
    if structured(wanted):
        scores["json"] = float(structured(said))
    return scores


def f1(said: str, wanted: str) -> float:
    """Harmonic mean of the shares of words that are wanted and that were said. Two empty texts agree."""
    ours, theirs = Counter(WORD.findall(said.lower())), Counter(WORD.findall(wanted.lower()))
    if not ours or not theirs:
        return float(ours == theirs)
    common = (ours & theirs).total()
    return 2 * common / (ours.total() + theirs.total())


def structured(text: str) -> bool:
    """Whether a text is a JSON object or list."""
    try:
        return isinstance(json.loads(text), dict | list)
    except (ValueError, RecursionError):
        return False


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Interval:
    """The mean of values and its interval, by resampling them (percentiles; Efron 1979). Raises ValueError for none."""
    if not values:
        raise ValueError("the mean of nothing")
    array: npt.NDArray[np.float64] = np.asarray(values, np.float64)
    rng = np.random.default_rng(seed)
    means = [float(array[rng.integers(0, len(array), len(array))].mean()) for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(array.mean()), float(low), float(high), len(array))


def _calls(message: Message) -> list[tuple[str, object]]:
    return [(call.name, _arguments(call.arguments)) for call in message.tool_calls]


def _arguments(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text
