"""For commands that talk to a server: which one, with what patience, and how its words come to a terminal."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Annotated

import httpx
import typer

from app.asking import Answered, NotNow
from app.client import DEFAULT_URL, Answer, Client
from app.errors import MindFuError
from app.settings import Client as Place

Url = Annotated[str | None, typer.Option(help="Of the server.", show_default=f"MINDFU_URL, else {DEFAULT_URL}")]
Timeout = Annotated[float, typer.Option(min=1, metavar="SECONDS", help="How long the server may be silent.")]
TIMEOUT_S = 30.0
REMEDY = "Start one with `mindfu serve`, or name another by --url or MINDFU_URL; `mindfu doctor` looks closer."
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@contextmanager
def connected(url: str | None, timeout_s: float = TIMEOUT_S, *, session: str | None = None) -> Iterator[Client]:
    """A client of the server that is meant: --url, MINDFU_URL, this machine's. The key is MINDFU_API_KEY's."""
    place = Place.from_env()
    key = place.api_key.get_secret_value() if place.api_key else None
    address = url or place.url or DEFAULT_URL
    try:
        with Client(address, key, session=session, timeout_s=timeout_s, waiting=_tell) as client:
            yield client
    except MindFuError as error:
        raise MindFuError(explained(error)) from error


def explained(error: MindFuError) -> str:
    """An error, with what somebody at a terminal can do about it."""
    if isinstance(error, NotNow) and isinstance(error.__cause__, httpx.TransportError):
        return f"{error} {REMEDY}"
    if isinstance(error, Answered) and error.http_status == HTTPStatus.UNAUTHORIZED:
        return f"{error} `mindfu` takes it from MINDFU_API_KEY."
    return str(error)


def harmless(text: str) -> str:
    """A text without what a terminal would obey: models, documents and tools may say anything."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def summary(answer: Answer) -> str:
    """Tokens, time and tools of an answer, in one line."""
    parts = [
        f"{answer.tokens_input} + {answer.tokens_generated} tokens",
        f"{answer.generation_time:.1f} s",
        f"{answer.tokens_per_second:.1f} tokens/s",
        answer.model_key,
        answer.device,
    ]
    parts += [f"tools: {', '.join(answer.tools_used)}"] if answer.tools_used else []
    parts += ["cut off: it met its token limit"] if answer.finish_reason == "length" else []
    parts += [f"the {answer.dropped_messages} oldest messages had no room"] if answer.dropped_messages else []
    return " · ".join(parts)


def _tell(reason: str, pause_s: float) -> None:
    print(f"{harmless(reason)}. Trying again in {pause_s:g} s …", file=sys.stderr, flush=True)
