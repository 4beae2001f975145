"""When an adapter does worse than what it replaced: for certain, and by more than is allowed."""

import pytest

from app.desired import Desired, Serving, Trial
from app.settings import WatchSettings
from app.trials import Standing
from app.watching import lowest_rise, worse

SETTINGS = WatchSettings()
SINCE = "2026-11-21T08:00:00Z"


def standing(turns: int = 200, unfinished: int = 2, judged: int = 0, disliked: int = 0) -> Standing:
    return Standing(turns=turns, unfinished=unfinished, judged=judged, disliked=disliked)


@pytest.mark.parametrize(
    ("ours", "theirs", "told"),
    [
        (standing(20, 20), standing(), "20 of 20 answers failed or did not end, before 2 of 200"),
        (standing(100, 40), standing(), "40 of 100"),
        (standing(20, 20), standing(0, 0), "before 0 of 0"),  # the first adapter of a new installation
        (standing(judged=10, disliked=10), standing(judged=50, disliked=5), "people disliked 10 of 10 answers"),
        (standing(judged=200, disliked=100), standing(judged=200, disliked=30), "100 of 200 answers, before 30 of 200"),
    ],
)
def test_what_is_worse_for_certain_is_told_with_its_numbers(ours: Standing, theirs: Standing, told: str):
    """Errors and answers without an end, or ratings."""
    assert told in worse(ours, theirs, SETTINGS)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (standing(), standing()),
        (standing(19, 19), standing()),  # too few answers to say anything
        (standing(20, 3), standing()),  # 15 % of 20 may as well be 2 %
        (standing(1000, 45), standing(1000, 10)),  # a rise by 0.035 is allowed
        (standing(judged=9, disliked=9), standing(judged=50)),  # too few ratings
        (standing(judged=50, disliked=50), standing(judged=9)),  # too few to compare with
        (standing(judged=20, disliked=6), standing(judged=50, disliked=5)),  # may be chance
        (standing(judged=200, disliked=100), standing(judged=200, disliked=120)),  # people liked the other one less
    ],
)
def test_what_may_be_chance_is_left_alone(ours: Standing, theirs: Standing):
    """As is what there is too little of."""
    assert worse(ours, theirs, SETTINGS) == ""


def test_the_rise_is_newcombes(monkeypatch: pytest.MonkeyPatch):
    """His own example (a): 56 of 70 against 48 of 80 at 95 % is a rise by 0.0524 at least (1998, table II)."""
    monkeypatch.setattr("app.watching.Z", 1.959964)
    assert lowest_rise((56, 70), (48, 80)) == pytest.approx(0.0524, abs=1e-4)


def trial(share: float, version: str = "v2", kind: str = "canary") -> Trial:
    return Trial.model_validate({"version": version, "kind": kind, "share": share, "since": SINCE})


def test_a_canary_takes_its_share_of_conversations_and_keeps_them():
    """By a hash: the same ones whenever asked, more of them with a larger share, others for another version."""
    names = [f"conversation {number}" for number in range(4000)]
    tenth, third = ({name for name in names if trial(share).takes(name)} for share in (0.1, 0.3))
    assert len(tenth) == pytest.approx(400, abs=60)
    assert tenth < third
    other = {name for name in names if trial(0.1, "v3").takes(name)}
    assert len(tenth & other) < 100


def test_only_the_models_own_name_is_on_trial():
    """Who names the base or a version gets it; and a conversation that nobody knows is the champion's."""
    desired = Desired(servings=(Serving(model="m", champion="v1", trial=trial(1.0)),))
    assert desired.answering("m", "", "c") == "v2"
    assert desired.answering("m", "", None) == "v1"
    assert desired.answering("m", "base", "c") is None
    assert desired.answering("m", "v3", "c") == "v3"
    unseen = Desired(servings=(Serving(model="m", champion="v1", trial=trial(1.0, kind="shadow")),))
    assert (unseen.answering("m", "", "c"), unseen.trying("m", "shadow", "c")) == ("v1", "v2")
    assert unseen.trying("m", "shadow", None) is None
