"""Recognise the conversation that a request continues: a hash chain over its messages. Pure functions.

Clients resend the whole history with every question. A link is the hash of the link before it and of one message, so
equal links mean equal histories. What clients change between two turns is left out of it: the system prompt, ids,
names, white space around an answer, and how the arguments of a tool call are written.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from app.messages import Message

Link = bytes  # SHA-256


class Chains(NamedTuple):
    """The links of a history."""

    canonical: tuple[Link, ...]
    exact: tuple[Link, ...]

    def first(self, count: int) -> "Chains":
        """Those of the history's beginning."""
        return Chains(self.canonical[:count], self.exact[:count])


def spoken(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages without system prompts."""
    return tuple(message for message in messages if message.role != "system")


def links(tenant: str, messages: Iterable[Message]) -> tuple[Link, ...]:
    """One link per message: its history in canonical form. messages: spoken."""
    return _chain(tenant.encode("utf-8", "surrogatepass"), (canonical(message) for message in messages))


def exact_links(messages: Iterable[Message]) -> tuple[Link, ...]:
    """One link per message: its history to the letter. messages: spoken."""
    return _chain(b"", (message.model_dump_json(exclude_defaults=True).encode() for message in messages))


def chains_of(tenant: str, messages: Sequence[Message]) -> Chains:
    """Both."""
    return Chains(links(tenant, messages), exact_links(messages))


def anchors(messages: Sequence[Message], chain: Sequence[Link]) -> tuple[Link, ...]:
    """The links that a recorded turn may end in: those of assistant messages, the longest history first."""
    ends = [link for message, link in zip(messages, chain, strict=True) if message.role == "assistant"]
    return tuple(reversed(ends))


def canonical(message: Message) -> bytes:
    """What makes two messages the same to us."""
    assistant = message.role == "assistant"
    content = message.content.strip() if assistant else message.content
    calls = [[call.name, _arguments(call.arguments)] for call in message.tool_calls]
    return _compact([message.role, content, calls]).encode()


def _arguments(text: str) -> str:
    """JSON in one spelling; anything else as it stands. Clients send "" and "{}" for the same."""
    text = text.strip() or "{}"
    try:
        return _compact(json.loads(text, parse_float=_number, parse_constant=_refuse))
    except (ValueError, RecursionError):
        return text


def _number(text: str) -> float | int:
    """JavaScript writes 1.0 back as 1."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _refuse(name: str) -> None:
    raise ValueError(name)  # NaN is not JSON


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _chain(seed: bytes, parts: Iterable[bytes]) -> tuple[Link, ...]:
    start = hashlib.sha256(seed).digest()
    return tuple(accumulate(parts, lambda link, part: hashlib.sha256(link + part).digest(), initial=start))[1:]
