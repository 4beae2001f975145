"""Requests and their answers in the making, as the step loop works on them."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from app.deltas import Stream, joined
from app.llama.adapters import Adapter
from app.llama.answer import Answer, Piece
from app.llama.prefix import Holding
from app.llama.sampling import Sampler
from app.llama.speculation import Luck
from app.llama.vocabulary import Tokens
from app.messages import Delta, Done, End, FinishReason, Timings, TokenLogprob, Usage

NOTHING = np.zeros(0, np.int32)


@dataclass(eq=False, slots=True)
class Request:
    """A prompt on its way through the step loop, and the answers to it, of at most `answer_tokens` each.

    width: how many of them are made together; the others follow when these are complete. Prompt and answer fit the
    window together, and what is made together fits slots and cache.
    """

    prompt: Tokens
    answer_tokens: int
    stream: Stream
    adapter: Adapter | None = None
    tenant: str = "default"
    logprobs: int | None = None  # alternatives to tell with each token
    width: int = 1
    jobs: list["Job"] = field(default_factory=list)

    # the step loop's
    admitted: bool = False
    cancelled: bool = False
    over: bool = False
    cached_tokens: int = 0
    ends: dict[int, End] = field(default_factory=dict)
    entered_at: float = field(default_factory=time.perf_counter)
    admitted_at: float = 0.0
    answering_at: float = 0.0  # 0 while the prompt is loading

    @property
    def slots(self) -> int:
        """Sequences that it comes to need."""
        return self.width

    @property
    def cells(self) -> int:
        """Cache cells that it may come to need: the answers share the prompt's."""
        return len(self.prompt) + self.width * self.answer_tokens

    @property
    def owner(self) -> tuple[Adapter | None, str]:
        """Whose the cells are: nobody else may share them."""
        return self.adapter, self.tenant

    def answer(self, text: Answer, sampler: Sampler) -> "Job":
        """Add one more answer."""
        self.jobs.append(Job(self, len(self.jobs), text, sampler))
        return self.jobs[-1]

    def done(self) -> Done:
        """The last item of the stream."""
        now = time.perf_counter()
        usage = Usage(
            prompt_tokens=len(self.prompt),
            completion_tokens=sum(job.generated for job in self.jobs),
            cached_tokens=self.cached_tokens,
            reasoning_tokens=sum(job.thought for job in self.jobs),
        )
        timings = Timings(
            queued_s=self.admitted_at - self.entered_at,
            prefill_s=self.answering_at - self.admitted_at,
            decode_s=now - self.answering_at,
        )
        return Done(tuple(self.ends[choice] for choice in range(len(self.jobs))), usage, timings)


@dataclass(eq=False, slots=True)
class Job:
    """One answer. Of several that are made together, the first one loads the prompt."""

    request: Request
    choice: int
    text: Answer
    sampler: Sampler | None

    # the step loop's
    sequence: int = -1
    history: Tokens = field(default_factory=lambda: NOTHING)  # prompt and answer, with room for all of it
    known: int = 0  # tokens in the history
    fed: int = 0  # tokens in the cache, the first ones of the history
    row: int = -1  # of the batch, at which the next token can be sampled
    draft: list[int] = field(default_factory=list)  # tokens that may come next
    tried: int = 0  # how many of them are in the batch
    luck: Luck = field(default_factory=Luck)
    generated: int = 0
    thought: int = 0  # tokens of them that were thoughts
    unsent: list[Delta] = field(default_factory=list)
    sent: bool = False  # whether anything was
    answering: bool = False  # the prompt is loaded
    over: bool = False

    def begin(self, sequence: int, fed: int) -> None:
        """Take a sequence that holds the first tokens of the prompt already."""
        prompt = self.request.prompt
        self.sequence, self.fed, self.known = sequence, fed, len(prompt)
        self.history = np.empty(len(prompt) + self.request.answer_tokens, np.int32)
        self.history[: len(prompt)] = prompt

    @property
    def token(self) -> int:
        """The newest, which is not in the cache yet while the answer goes on."""
        return int(self.history[self.known - 1])

    @property
    def left(self) -> int:
        """Tokens of the prompt that are not in the cache yet."""
        return len(self.request.prompt) - self.fed

    @property
    def holding(self) -> Holding:
        """What the cache holds of it."""
        return Holding(self.sequence, self.request.owner, self.history[: self.fed])

    def append(self, token: int) -> None:
        """One more token of the answer."""
        self.history[self.known] = token
        self.known += 1
        self.generated += 1

    def add(self, piece: Piece, tokens: int, logprobs: tuple[TokenLogprob, ...] = ()) -> None:
        """What may be sent with the next flush."""
        delta = Delta(piece.text, tokens, self.choice, piece.reasoning, piece.calls, logprobs)
        joint = joined(self.unsent[-1], delta) if self.unsent else None
        if joint:
            self.unsent[-1] = joint
        else:
            self.unsent.append(delta)

    @property
    def worth_sending(self) -> bool:
        """Whether there is more than a count of tokens."""
        return any(delta.text or delta.reasoning or delta.tool_calls for delta in self.unsent)

    def take(self) -> list[Delta]:
        """What gathered since the last call."""
        deltas, self.unsent, self.sent = self.unsent, [], True
        return deltas

    def end(self, reason: FinishReason) -> None:
        """How the answer ended."""
        self.request.ends[self.choice] = End(reason, self.text.stopped)
        self.over = True


def share_prefill(loading: Sequence[Job], budget: int) -> list[tuple[Job, int]]:
    """How many prompt tokens of each job this step takes. loading: in order of admission; budget: tokens.

    The shortest prompts go first, because they answer soonest, and of some about as long the oldest. The oldest of all
    has half of the budget in any case. Where one is complete, a part of another younger one is left for the next step:
    it would only hold up the answer that begins in this one.
    """
    if not loading or budget <= 0:
        return []
    oldest = loading[0]
    shares = {oldest: min(oldest.left, (budget + 1) // 2)}
    budget -= shares[oldest]
    for job in sorted(loading, key=lambda job: job.left.bit_length()):
        more = min(job.left - shares.get(job, 0), budget)
        shares[job] = shares.get(job, 0) + more
        budget -= more
    complete = any(share == job.left for job, share in shares.items())
    return [
        (job, share) for job, share in shares.items() if share and (share == job.left or job is oldest or not complete)
    ]
