"""The gates: a candidate that is better passes, and each way of being worse blocks it by its own reason."""

from typing import Any

import pytest

from train.gate import Gates, judge
from train.parity import Parity
from train.results import Judged, Metric, Preference, Regression, Results
from train.scores import Interval


def metric(base: float, tuned: float, spread: float = 0.01) -> Metric:
    change = tuned - base
    return Metric(base=base, tuned=tuned, change=Interval(change, change - spread, change + spread, 50))


def judged(gain: float = 0.2, spread: float = 0.1, conversations: int = 50, **metrics: Metric) -> Judged:
    interval = Interval(gain, gain - spread, gain + spread, conversations)
    told = {"exact": metric(0.5, 0.6), "ended": metric(1.0, 1.0), **metrics}
    return Judged(
        conversations=conversations, answers=50, tokens=900, base_loss=1.0, tuned_loss=0.8, gain=interval, metrics=told
    )


DISLIKED = Interval(-0.3, -0.5, -0.1, 22)


def preferred(wins: int, losses: int, score: Interval | None = DISLIKED) -> Judged:
    told = Preference(
        judge="j", wins=wins, losses=losses, ties=1, swayed=1, unreadable=0, left_out=0, tokens=9, score=score
    )
    return judged().model_copy(update={"preference": told})


def parity(difference: float = 0.01, trained: float = 0.2, **fields: Any) -> Parity:
    told = {"tokens": 900, "served": 0.2, "highest_difference": 0.1, "correlation": 0.99, **fields}
    return Parity(mean_difference=difference, trained=trained, **told)


def results(**changed: Any) -> Results:
    regression = Regression(items=20, passed=18, broken=("greets",), mended=())
    told = {"sets": {"test": judged()}, "regression": regression, "parity": parity(), **changed}
    return Results(file="m.gguf", base="b", adapter="a", base_speed=None, tuned_speed=None, **told)


def test_a_better_candidate_passes():
    """One broken item of 18 is within a tenth, and every gate is told with its numbers."""
    verdict = judge(results(), Gates())
    assert (verdict.verdict, verdict.reasons) == ("passed", ())
    assert {check.name for check in verdict.checks} >= {"data", "gain", "regression", "parity", "prompts"}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"sets": {"test": judged(conversations=19)}}, "19 held-out conversations, at least 20 are wanted"),
        ({"sets": {"test": judged(gain=0.05, spread=0.06)}}, "falls by 0.0500 nats (95 %: -0.0100 to 0.1100)"),
        ({"sets": {"test": judged(gain=-0.5)}}, "falls by -0.5000 nats"),
        ({"sets": {"test": judged(exact=metric(0.5, 0.4))}}, "exact on the test set goes from 0.500 to 0.400"),
        ({"sets": {"test": judged(call=metric(0.9, 0.2))}}, "call on the test set"),
        ({"sets": {"test": judged(ended=metric(1.0, 0.97))}}, "ended on the test set goes from 1.000 to 0.970"),
        ({"sets": {"test": judged(json=metric(0.9, 0.8))}}, "json on the test set"),
        (
            {"sets": {"test": judged(), "trusted": judged(gain=-0.3)}},
            "the loss on trusted answers rises by 0.3000 nats, 0.05 are allowed",
        ),
        (
            {"sets": {"test": judged(), "trusted": judged(exact=metric(0.9, 0.1))}},
            "exact on the trusted set goes from 0.900 to 0.100",
        ),
        (
            {"regression": Regression(items=20, passed=18, broken=("a", "b"), mended=())},
            "2 of 18 regression items are broken (a, b), 1 are allowed",
        ),
        ({"parity": parity(difference=0.06)}, "by 0.0600 nats a token, 0.0500 are allowed"),
        ({"parity": parity(problems=("c1: the prompt differs from token 3 of 9",))}, "the prompt differs from token 3"),
        ({"parity": None}, "was not measured"),
        ({"sets": {"test": preferred(2, 20)}}, "20 times: -0.300 (95 %: -0.500 to -0.100), which must reach 0"),
        ({"sets": {"test": preferred(0, 0, score=None)}}, "nothing that it said is a verdict"),
    ],
)
def test_whatever_is_worse_blocks(changed: dict[str, Any], reason: str):
    """That gate alone, with the numbers."""
    verdict = judge(results(**changed), Gates())
    assert verdict.verdict == "blocked"
    assert [reason in told for told in verdict.reasons] == [True]


def test_what_might_be_chance_does_not_block_a_score():
    """A drop of 0.1 that may as well be one of 0.02: of scores the interval decides, of the gain too."""
    noisy = judged(exact=metric(0.5, 0.4, spread=0.08))
    assert judge(results(sets={"test": noisy}), Gates()).verdict == "passed"


def test_a_large_change_may_differ_by_a_share_of_itself():
    """A tenth of 2 nats is 0.2: what quantisation does grows with what training did."""
    assert judge(results(parity=parity(difference=0.15, trained=2.0)), Gates()).verdict == "passed"
    assert judge(results(parity=parity(difference=0.25, trained=2.0)), Gates()).verdict == "blocked"


def test_parity_may_be_switched_off():
    """On purpose, in params.yaml."""
    assert judge(results(parity=None), Gates(parity=False)).verdict == "passed"
