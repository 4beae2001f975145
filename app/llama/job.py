"""One answer in the making, and the way its pieces take from the step loop's thread to whoever waits for them."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from app.llama.model import Tokens
from app.llama.sampling import Sampler
from app.llama.text import AnswerText
from app.messages import Delta, Done, End, FinishReason, Sampling, Timings, Usage

Item = Delta | Done | Exception


class Stream:
    """From one thread to one asyncio task. A reader that is slow finds joined deltas, not a long queue."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._items: list[Item] = []
        self._filled = asyncio.Event()

    def put(self, item: Item) -> None:
        """Append an item. Runs in the loop's thread."""
        last = self._items[-1] if self._items else None
        if isinstance(last, Delta) and isinstance(item, Delta):
            self._items[-1] = Delta(last.text + item.text, last.tokens + item.tokens)
        else:
            self._items.append(item)
        self._filled.set()

    async def take(self) -> list[Item]:
        """All that is there, at least one item."""
        await self._filled.wait()
        self._filled.clear()
        items, self._items = self._items, []
        return items


@dataclass(eq=False, slots=True)
class Job:
    """A request on its way through the step loop. prompt and answer_tokens fit the window together."""

    prompt: Tokens
    answer_tokens: int  # at most
    sampling: Sampling
    text: AnswerText
    stream: Stream

    # the step loop's
    slot: int = -1
    sampler: Sampler | None = None
    fed: int = 0  # tokens in the cache
    row: int = -1  # of the batch, at which the next token can be sampled
    token: int = -1  # the newest, not in the cache yet
    generated: int = 0
    unsent_text: str = ""
    unsent_tokens: int = 0
    sent: bool = False  # whether anything was
    cancelled: bool = False
    over: bool = False
    entered: float = field(default_factory=time.perf_counter)
    admitted: float = 0.0
    answering: float = 0.0  # since when; 0 while the prompt is loading

    @property
    def cells(self) -> int:
        """Cache cells that it may come to need."""
        return len(self.prompt) + self.answer_tokens

    @property
    def left(self) -> int:
        """Tokens of the prompt that are not in the cache yet."""
        return len(self.prompt) - self.fed

    def add(self, text: str, tokens: int) -> None:
        """Text that may be sent with the next flush."""
        self.unsent_text += text
        self.unsent_tokens += tokens

    def unsent(self) -> Delta:
        """What gathered since the last call."""
        delta = Delta(self.unsent_text, self.unsent_tokens)
        self.unsent_text, self.unsent_tokens, self.sent = "", 0, True
        return delta

    def done(self, reason: FinishReason) -> Done:
        """The last item of the stream."""
        now = time.perf_counter()
        usage = Usage(prompt_tokens=len(self.prompt), completion_tokens=self.generated)
        timings = Timings(
            queued_s=self.admitted - self.entered,
            prefill_s=self.answering - self.admitted,
            decode_s=now - self.answering,
        )
        return Done((End(reason),), usage, timings)


def share_prefill(loading: Sequence[Job], budget: int) -> list[tuple[Job, int]]:
    """How many prompt tokens of each job this step takes. loading: in order of admission; budget: tokens.

    The shortest prompts go first, because they answer soonest; the oldest has half of the budget in any case.
    """
    if not loading or budget <= 0:
        return []
    oldest = loading[0]
    shares = {oldest: min(oldest.left, (budget + 1) // 2)}
    budget -= shares[oldest]
    for job in sorted(loading, key=lambda job: job.left):
        more = min(job.left - shares.get(job, 0), budget)
        shares[job] = shares.get(job, 0) + more
        budget -= more
    return [(job, share) for job, share in shares.items() if share]
