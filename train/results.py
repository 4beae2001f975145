"""What an evaluation found: results.json, which the report shows and the gates read."""

from pydantic import Field

from app.messages import Strict
from train.parity import Parity
from train.scores import Interval


class Metric(Strict):
    """A score of both models over the answers that have it. change: tuned − base, conversation by conversation."""

    base: float
    tuned: float
    change: Interval


class Preference(Strict):
    """What a judge thinks of pairs of answers: see train/preference.py. wins: of the tuned model.

    score: wins less losses, as a share, mean over conversations; None where nothing was judged. left_out: the budget
    was used.
    """

    judge: str
    wins: int
    losses: int
    ties: int
    swayed: int
    unreadable: int
    left_out: int
    tokens: int
    score: Interval | None


class Judged(Strict):
    """One set of held-out conversations. Losses: mean negative log-likelihood of a learnt token, nats.

    gain: how much lower the tuned model's loss is, mean over conversations.
    """

    conversations: int
    answers: int  # whose likelihood was measured
    tokens: int
    base_loss: float
    tuned_loss: float
    gain: Interval
    metrics: dict[str, Metric] = Field(default_factory=dict)  # of the answers that were generated; see train/scores.py
    preference: Preference | None = None  # None: no judge was asked
    dropped: dict[str, int] = Field(default_factory=dict)


class Regression(Strict):
    """passed: by the base; broken: of those, what the tuned model no longer does; mended: the other way round."""

    items: int
    passed: int
    broken: tuple[str, ...]
    mended: tuple[str, ...]


class Speed(Strict):
    """Of the generated answers. first_s: until something came, with the others beside it; answer_s, slow_s: until the
    end, half of them and all but 5 %; else means.
    """

    first_s: float
    tokens_per_s: float
    answer_s: float
    slow_s: float


class Results(Strict):
    """All of it. file: that serves; base, adapter: hashes of what was evaluated."""

    file: str
    base: str
    adapter: str
    sets: dict[str, Judged]
    regression: Regression
    parity: Parity | None  # None: it was switched off
    base_speed: Speed | None
    tuned_speed: Speed | None
