"""What the loop's demonstration found, what of it has to hold, and both as Markdown."""

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from app.errors import Misconfigured
from train import stages
from train.results import Judged

BEGIN, END = "<!-- loop-demo -->", "<!-- end of loop-demo -->"
REFUSED = 409


class Findings(NamedTuple):
    """chats: how many conversations of each kind, and questions; untouched: how those that no correction touched were
    judged. answers: to the same questions before, after, and taken back. poisoned: verdict and reasons; sabotaged: the
    status of its promotion, and the reasons.
    """

    chats: Mapping[str, int]
    practised: Mapping[str, int]  # answers from documents, and greetings, that were rated up and down
    untouched: Judged
    broken: tuple[int, int]  # of the regression items that the base passes
    promoted: bool
    answered: int  # to others, while it learnt and was promoted
    failed: Mapping[str, int]
    answers: tuple[Sequence[str], Sequence[str], Sequence[str]]
    rollback_s: float
    poisoned: tuple[str, Sequence[str]]
    sabotaged: tuple[int, Sequence[str]]
    minutes: float

    def claims(self) -> dict[str, bool]:
        """What has to hold."""
        before, after, again = self.answers
        return {
            "What was learnt from corrections passed the gates, and was promoted.": self.promoted,
            "Answers that no correction touched are likelier, for certain.": self.untouched.gain.low > 0,
            "No request failed.": not self.failed and self.answered > 0,
            "It answers otherwise.": before != after,
            "The rollback gave every answer back, to the letter.": self.promoted and before == again,
            "What was learnt from poisoned corrections was blocked.": self.poisoned[0] == "blocked",
            "A spoilt adapter was refused.": self.sabotaged[0] == REFUSED,
        }


def report(found: Findings) -> str:
    """The numbers as Markdown."""
    return "\n".join([*_table(found), "", *_sentences(found), "", *_claims(found)])


def record(file: Path, text: str) -> None:
    """Put a text between the marks of a file. Raises Misconfigured where it has none."""
    told = file.read_text(encoding="utf-8")
    if BEGIN not in told or END not in told:
        raise Misconfigured("--record", f"{file} has no {BEGIN} and {END}", "Put them where the numbers belong.")
    head, tail = told.split(BEGIN)[0], told.split(END)[1]
    stages.write(file, f"{head}{BEGIN}\n{text}\n{END}{tail}")


def _table(found: Findings) -> Iterator[str]:
    judged = found.untouched
    gain = judged.gain
    yield f"| {judged.conversations} untouched conversations, {judged.answers} answers | base | tuned | change (95 %) |"
    yield "|---|---|---|---|"
    change = f"{-gain.mean:+.3f} ({-gain.high:+.3f} to {-gain.low:+.3f})"
    yield f"| loss of the reference, nats a token | {judged.base_loss:.3f} | {judged.tuned_loss:.3f} | {change} |"
    for name, metric in judged.metrics.items():
        change = f"{metric.change.mean:+.3f} ({metric.change.low:+.3f} to {metric.change.high:+.3f})"
        yield f"| {name} | {metric.base:.3f} | {metric.tuned:.3f} | {change} |"


def _sentences(found: Findings) -> Iterator[str]:
    told, (before, after, _) = found.chats, found.answers
    others = sum(one != other for one, other in zip(before, after, strict=True))
    total = sum(told[part] for part in ("corrected", "rated", "untouched"))
    yield f"{total} conversations with {told['questions']} questions: {told['corrected']} corrected, {told['rated']}"
    yield f"rated, {told['untouched']} untouched; {found.practised['up']} answers to other questions were rated up,"
    yield f"{found.practised['down']} down. {found.minutes:.0f} minutes on {os.cpu_count()} cores,"
    yield f"{datetime.now(UTC):%Y-%m-%d}. Of {found.broken[1]} regression items that the base passes {found.broken[0]}"
    meanwhile = "it learnt and was promoted" if found.promoted else "it learnt"
    yield f"broke. While {meanwhile}, others had {found.answered} answers, and"
    yield f"{sum(found.failed.values())} requests failed. {others} of {len(before)} answers are others afterwards; the"
    yield f"rollback took {found.rollback_s:.2f} s. Poisoned corrections: {found.poisoned[0]}"
    yield f"({'; '.join(found.poisoned[1])}). A spoilt adapter: {found.sabotaged[0]} ({'; '.join(found.sabotaged[1])})."


def _claims(found: Findings) -> Iterator[str]:
    for claim, holds in found.claims().items():
        yield f"- {'Yes' if holds else '**No**'}: {claim}"
