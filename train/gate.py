"""Stage `gate`: whether an evaluated model may be promoted. Every threshold is a parameter, and every reason a number.

    python -m train.gate --input evaluation=.mindfu/runs/evaluate-…

A candidate passes where it is better for certain and worse at nothing that counts. What is blocked can still be
published, and is promoted only with --force, which is recorded.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from app.messages import Strict
from train import stages
from train.evaluate import RESULTS
from train.results import Judged, Preference, Results
from train.stages import Outcome, Stage, Work

VERDICT = "verdict.json"
FORMATS = ("ended", "json")  # scores of form, which have a bound of their own


class Gates(Strict):
    """The parameters of the stage `gate`. Losses in nats a token; shares from 0 to 1."""

    min_conversations: int = Field(20, ge=1)  # held out, and evaluated
    min_gain: float = 0.0  # which the whole 95 % interval of the loss's fall must exceed
    max_drop: float = Field(0.05, ge=0)  # of a score (exact, f1, call, …), for certain: its interval's upper end
    max_format_drop: float = Field(0.02, ge=0)  # of ended and json, on average
    max_trusted_loss: float = Field(0.05, ge=0)  # by which the loss on trusted answers may rise, on average
    max_broken: float = Field(0.1, ge=0, le=1)  # share of the regression items that the base passes
    min_preference: float = Field(0.0, ge=-1, le=1)  # wins less losses by the judge: the interval must reach it
    max_parity: float = Field(0.05, ge=0)  # mean difference between the change as served and as trained
    max_relative_parity: float = Field(0.1, ge=0)  # the same as a share of the change, where that is the larger bound
    parity: bool = True  # must have been measured


class Check(NamedTuple):
    """One gate. told: what was found and what is wanted."""

    name: str
    passed: bool
    told: str


class Verdict(Strict):
    """verdict.json. reasons: of the block."""

    verdict: Literal["passed", "blocked"]
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]


def judge(results: Results, gates: Gates) -> Verdict:
    """Every gate, whatever the one before says."""
    checks = tuple(_checks(results, gates))
    reasons = tuple(check.told for check in checks if not check.passed)
    return Verdict(verdict="blocked" if reasons else "passed", reasons=reasons, checks=checks)


def _checks(results: Results, gates: Gates) -> Iterator[Check]:
    test = results.sets["test"]
    yield Check(
        "data",
        test.conversations >= gates.min_conversations,
        f"{test.conversations} held-out conversations, at least {gates.min_conversations} are wanted",
    )
    yield Check(
        "gain",
        test.gain.low > gates.min_gain,
        f"the loss falls by {test.gain.mean:.4f} nats (95 %: {test.gain.low:.4f} to {test.gain.high:.4f}), "
        f"all of the interval must be above {gates.min_gain:g}",
    )
    for name, judged in results.sets.items():
        yield from _scores(name, judged, gates)
        if judged.preference:
            yield _preferred(name, judged.preference, gates)
    if "trusted" in results.sets:
        rise = -results.sets["trusted"].gain.mean
        yield Check(
            "trusted",
            rise <= gates.max_trusted_loss,
            f"the loss on trusted answers rises by {rise:.4f} nats, {gates.max_trusted_loss:g} are allowed",
        )
    regression = results.regression
    allowed = int(gates.max_broken * regression.passed)
    names = f" ({', '.join(regression.broken)})" if regression.broken else ""
    yield Check(
        "regression",
        len(regression.broken) <= allowed,
        f"{len(regression.broken)} of {regression.passed} regression items are broken{names}, {allowed} are allowed",
    )
    yield from _parity(results, gates)


def _scores(name: str, judged: Judged, gates: Gates) -> Iterator[Check]:
    for metric, told in judged.metrics.items():
        if metric in FORMATS:
            passed, bound = told.change.mean >= -gates.max_format_drop, gates.max_format_drop
        else:
            passed, bound = told.change.high >= -gates.max_drop, gates.max_drop
        change = told.change
        text = (
            f"{metric} on the {name} set goes from {told.base:.3f} to {told.tuned:.3f}, by {change.mean:+.3f} a "
            f"conversation (95 %: {change.low:+.3f} to {change.high:+.3f}), a drop of {bound:g} is allowed"
        )
        yield Check(f"{metric} ({name})", passed, text)


def _preferred(name: str, told: Preference, gates: Gates) -> Check:
    """That the judge does not prefer the base for certain; and that it was a judge at all."""
    text = f"{told.judge} prefers the tuned model {told.wins} times on the {name} set, the base {told.losses} times"
    if told.score is None:
        return Check(f"preference ({name})", passed=False, told=f"{text}: nothing that it said is a verdict")
    interval = f"{told.score.mean:+.3f} (95 %: {told.score.low:+.3f} to {told.score.high:+.3f})"
    text += f": {interval}, which must reach {gates.min_preference:g}"
    return Check(f"preference ({name})", told.score.high >= gates.min_preference, text)


def _parity(results: Results, gates: Gates) -> Iterator[Check]:
    parity = results.parity
    if parity is None:
        yield Check("parity", not gates.parity, "parity with the training stack was not measured")
        return
    bound = max(gates.max_parity, gates.max_relative_parity * abs(parity.trained))
    yield Check(
        "parity",
        parity.mean_difference <= bound,
        f"the change as served differs from the change as trained by {parity.mean_difference:.4f} nats a token, "
        f"{bound:.4f} are allowed",
    )
    yield Check(
        "prompts",
        not parity.problems,
        f"{len(parity.problems)} prompts or endings are served otherwise than trained"
        + (f": {parity.problems[0]}" if parity.problems else ""),
    )


def make(work: Work[Gates]) -> Outcome:
    """Judge, and write the verdict."""
    results = read_results(work.inputs["evaluation"])
    verdict = judge(results, work.parameters)
    stages.write(work.folder / VERDICT, verdict.model_dump_json(indent=1) + "\n")
    for check in verdict.checks:
        print(f"  {'✓' if check.passed else '✗'} {check.name}: {check.told}")
    passed = sum(check.passed for check in verdict.checks)
    counts = {"passed": passed, "blocked": len(verdict.checks) - passed}
    return Outcome(counts, facts={"verdict": verdict.verdict, "reasons": list(verdict.reasons)})


def read_results(folder: Path) -> Results:
    """Of a finished evaluation."""
    stages.manifest(folder)
    return Results.model_validate_json((folder / RESULTS).read_bytes())


STAGE = Stage(
    name="gate",
    does="Decide whether an evaluated model may be promoted.",
    place="runs",
    inputs=("evaluation",),
    parameters=Gates,
    make=make,
)

if __name__ == "__main__":
    stages.main(STAGE)
