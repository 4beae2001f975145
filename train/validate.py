"""Stage `validate`: of one or several data sets, keep what is worth learning from, once, and without secrets.

    python -m train.validate --input data=.mindfu/datasets/export-0f3a… --input data=.mindfu/datasets/convert-77b1…

Lines are judged in parallel on Ray Data where there is a cluster or much to do, one after the other where there is
not. Every line that is dropped and every answer that is not learnt any more is counted with its reason: report.json.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from app.errors import InvalidRequest
from train import flow, lines, stages
from train.near import Near, sketch
from train.quality import Quality, judge, judge_preference, spoken
from train.redact import Redactor
from train.stages import Outcome, Stage, Work

DATA, PREFERENCES, REPORT = "data.jsonl", "preferences.jsonl", "report.json"


class Judged(NamedTuple):
    """What became of a line of text. text None: it was dropped. JSON-compatible, to travel between processes."""

    text: str | None
    reason: str | None
    unlearnt: dict[str, int]
    redacted: dict[str, int]


def check(inputs: Mapping[str, Path], _: Quality) -> None:
    """Raises InvalidRequest where an input is no data set."""
    for folder in inputs.values():
        if not (folder / DATA).exists() and not (folder / PREFERENCES).exists():
            raise InvalidRequest(f"{folder} holds neither {DATA} nor {PREFERENCES}: run train.convert on it.", "data")


def make(work: Work[Quality]) -> Outcome:
    """Judge, redact, and drop what is nearly told already."""
    quality, folders = work.parameters, work.all("data")
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    unlearnt: Counter[str] = Counter()
    redacted: Counter[str] = Counter()

    def kept(name: str, judge_one: flow.Function) -> Iterator[str]:
        for judged in flow.mapped([folder / name for folder in folders], judge_one, quality, work):
            counts[f"{name} read"] += 1
            unlearnt.update(judged["unlearnt"])
            redacted.update(judged["redacted"])
            if judged["text"] is None:
                dropped[judged["reason"]] += 1
            else:
                yield judged["text"]

    told = _without_duplicates(kept(DATA, judged_line), quality, dropped)
    counts["conversations"] = lines.save(work.folder / DATA, told)
    counts["preferences"] = lines.save(work.folder / PREFERENCES, kept(PREFERENCES, judged_preference))
    report = {"counts": counts, "dropped": dropped, "answers_not_learnt": unlearnt, "redacted": redacted}
    stages.write(work.folder / REPORT, json.dumps(report, indent=1, sort_keys=True) + "\n")
    facts: dict[str, JsonValue] = {"answers_not_learnt": dict(unlearnt), "redacted": dict(redacted)}
    return Outcome(counts, dropped, facts)


def judged_line(text: str, quality: Quality) -> flow.Row:
    """What becomes of a conversation."""
    try:
        line = lines.parse(text)
    except InvalidRequest as error:
        return Judged(None, f"malformed: {_short(error)}", {}, {})._asdict()
    verdict = judge(line, quality)
    if verdict.line is None:
        return Judged(None, verdict.reason, dict(verdict.unlearnt), {})._asdict()
    redactor = Redactor()
    clean = redactor.line(verdict.line) if quality.redact else verdict.line
    return Judged(lines.dump(clean), None, dict(verdict.unlearnt), dict(redactor.counts))._asdict()


def judged_preference(text: str, quality: Quality) -> flow.Row:
    """What becomes of a preference."""
    try:
        pair = lines.parse_preference(text)
    except InvalidRequest as error:
        return Judged(None, f"malformed preference: {_short(error)}", {}, {})._asdict()
    if reason := judge_preference(pair, quality):
        return Judged(None, f"preference: {reason}", {}, {})._asdict()
    redactor = Redactor()
    clean = redactor.preference(pair) if quality.redact else pair
    return Judged(lines.dump_preference(clean), None, {}, dict(redactor.counts))._asdict()


def _without_duplicates(told: Iterator[str], quality: Quality, dropped: Counter[str]) -> Iterator[str]:
    """The first of those that are nearly the same. Lines of one conversation may be: a longer one, another branch."""
    if quality.duplicates is None:
        yield from told
        return
    near, seen = Near(quality.duplicates), set[str]()
    for text in told:
        line = lines.parse(text)
        made, same = sketch(spoken(line)), lines.fingerprint(line.messages)
        if same in seen or any(name != line.id for name in near.like(made)):
            dropped["near-duplicate"] += 1
            continue
        near.add(line.id, made)
        seen.add(same)
        yield text


def _short(error: InvalidRequest) -> str:
    """The message without what differs from line to line."""
    return str(error).partition("(")[0].strip(" .")[:80]


STAGE = Stage(
    name="validate",
    does="Keep what is worth learning from.",
    place="datasets",
    inputs=("data+",),
    parameters=Quality,
    make=make,
    check=check,
)

if __name__ == "__main__":
    stages.main(STAGE)
