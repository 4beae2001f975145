"""An answer put together from the pieces of its stream. Pure functions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from app.messages import Delta, Message, TokenLogprob, ToolCall, ToolCallDelta


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the `n` answers, or what there is of it. A call that was cut short has the arguments written so far."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()

    def message(self) -> Message:
        """As the assistant's turn of a chat."""
        return Message(role="assistant", content=self.text, reasoning=self.reasoning, tool_calls=self.tool_calls)


def gather(deltas: Iterable[Delta], n: int = 1) -> tuple[Choice, ...]:
    """The `n` answers that a stream has told so far, in their order. deltas: of all of them, as they came."""
    of: tuple[list[Delta], ...] = tuple([] for _ in range(n))
    for delta in deltas:
        of[delta.choice].append(delta)
    return tuple(_choice(pieces) for pieces in of)


def merged(pieces: Iterable[ToolCallDelta]) -> tuple[ToolCall, ...]:
    """The calls that the pieces make up, in the order in which they began."""
    of: dict[int, list[ToolCallDelta]] = {}
    for piece in pieces:
        of.setdefault(piece.index, []).append(piece)
    return tuple(
        ToolCall(
            id=next((piece.id for piece in call if piece.id), ""),
            name="".join(piece.name or "" for piece in call),
            arguments="".join(piece.arguments for piece in call),
        )
        for call in of.values()
    )


def _choice(pieces: Sequence[Delta]) -> Choice:
    return Choice(
        text="".join(piece.text for piece in pieces),
        reasoning="".join(piece.reasoning for piece in pieces),
        tool_calls=merged(call for piece in pieces for call in piece.tool_calls),
        logprobs=tuple(logprob for piece in pieces for logprob in piece.logprobs),
    )
