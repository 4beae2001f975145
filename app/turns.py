"""A turn of a conversation: what the gateway hands over for recording, and what the store gives back."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID, uuid4

from pydantic import AfterValidator, AwareDatetime, Field, JsonValue

from app.messages import FinishReason, Message, Passage, Sampling, Strict, Timings, Usage
from app.prompt import Placement

# complete: the model stopped. truncated: a token limit did. cancelled: the client left. failed: `error` says why.
# Only complete turns may become training targets.
TurnStatus = Literal["complete", "truncated", "cancelled", "failed"]


DROPPED = "dropped_messages"  # of the extras: so many of the oldest messages were not shown to the model

UuidText = Annotated[str, AfterValidator(lambda text: str(UUID(text)))]


class Answered(Strict):
    """What is true of an answer wherever its turn is kept. Times in seconds from the request's arrival."""

    id: UuidText = Field(default_factory=lambda: str(uuid4()))
    request_id: str  # ours, never one that a client chose: a second turn with the same one is taken for a replay
    answer: Message  # as much of it as there is
    model: str
    adapter: str | None = None
    sources: tuple[Passage, ...] = ()  # in the order in which the model saw them
    placement: Placement = "last_user"
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    first_token_s: float | None = None
    latency_s: float
    finish_reason: FinishReason | None = None
    status: TurnStatus
    error: str | None = None
    client: str | None = None  # its User-Agent
    extras: dict[str, JsonValue] = Field(default_factory=dict)  # fields only kept; the tools, the other answers of `n`
    created_at: AwareDatetime


class Turn(Answered):
    """A turn to record: the whole request, and its answer."""

    tenant: str = "default"
    conversation_id: str | None = None  # named by the client, or by `locate`. None: to be found. Unknown: opens one
    messages: tuple[Message, ...]  # all that the client sent, system prompts included, without the sources


class Feedback(Strict):
    """What someone thinks of a turn. author: as the client named them, or nobody ("")."""

    author: str
    rating: float | None = None  # from -1, bad, to 1, good
    comment: str | None = None
    correction: Message | None = None  # the answer as it should have been
    created_at: datetime
    updated_at: datetime


class RecordedTurn(Answered):
    """A turn as the store keeps it: only what it added to its parent. feedback: told with whole conversations only."""

    parent_id: str | None  # None: nothing that we recorded came before
    messages: tuple[Message, ...]  # the new ones, without system prompts
    feedback: tuple[Feedback, ...] = ()  # the latest last


class Wanted(Strict):
    """Which conversations. A date without a zone is in UTC. text: as people write it to a search engine."""

    since: datetime | None = None  # of the latest turn
    before: datetime | None = None
    model: str | None = None  # that answered any turn
    rating: Literal["up", "down", "none"] | None = None  # of any turn, above or below 0; none: no turn was judged
    text: str | None = None


class ConversationSummary(Strict):
    """A line of a list of conversations."""

    id: str
    title: str  # the beginning of the first user message
    turns: int
    model: str  # of the latest turn
    created_at: datetime
    updated_at: datetime


class Conversation(Strict):
    """A conversation with its turns in the order of recording. Their parents make it a forest."""

    id: str
    title: str
    created_at: datetime
    updated_at: datetime
    turns: tuple[RecordedTurn, ...]
