"""People who chat all the time while something happens to the cluster, and what became of each of their answers."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx


@dataclass(frozen=True)
class Outcome:
    """One answer. end: complete, event (an error as the stream's last event), refused (a status), cut (neither)."""

    end: str
    began: float  # of time.monotonic
    ended: float
    told: str = ""  # of what is not complete
    request_id: str = ""


@dataclass
class Load:
    """Clients that stream one answer after the other; as many as they are, at the same time."""

    url: str
    key: str
    model: str
    clients: int
    tokens: int
    outcomes: list[Outcome] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def count(self) -> Counter[str]:
        """How many ended how."""
        return Counter(outcome.end for outcome in self.outcomes)

    def failed(self) -> list[Outcome]:
        """What did not complete."""
        return [outcome for outcome in self.outcomes if outcome.end != "complete"]

    def answered(self) -> int:
        """How many began to be answered: each of them is to be recorded, however it ended."""
        return sum(bool(outcome.request_id) and outcome.end != "refused" for outcome in self.outcomes)

    def complete_since(self, moment: float) -> int:
        """How many answers that began behind a moment are complete."""
        return sum(one.end == "complete" and one.began > moment for one in self.outcomes)

    async def _people(self) -> None:
        async with httpx.AsyncClient(
            base_url=self.url, timeout=120, headers={"authorization": f"Bearer {self.key}"}, trust_env=False
        ) as http:
            await asyncio.gather(*(self._person(http, number) for number in range(self.clients)))

    async def _person(self, http: httpx.AsyncClient, number: int) -> None:
        asked = 0
        while not self._over.is_set():
            asked += 1
            self.outcomes.append(await self._answer(http, f"person {number} asks for the {asked}th time"))

    async def _answer(self, http: httpx.AsyncClient, text: str) -> Outcome:
        body = {
            "model": self.model, "messages": [{"role": "user", "content": text}],
            "max_tokens": self.tokens, "stream": True,
        }  # fmt: skip
        began, request_id, last = time.monotonic(), "", ""
        try:
            async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                request_id = answer.headers.get("x-request-id", "")
                if answer.status_code != 200:
                    told = f"{answer.status_code} {(await answer.aread()).decode()[:300]}"
                    return Outcome("refused", began, time.monotonic(), told, request_id)
                async for line in answer.aiter_lines():
                    last = line.removeprefix("data: ") or last
        except httpx.HTTPError as error:
            return Outcome("cut", began, time.monotonic(), repr(error), request_id)
        end = "complete" if last == "[DONE]" and "error" not in last else "event" if _is_error(last) else "cut"
        return Outcome(end, began, time.monotonic(), "" if end == "complete" else last[:300], request_id)


def _is_error(line: str) -> bool:
    try:
        return "error" in json.loads(line)
    except ValueError:
        return False


@contextmanager
def under_load(url: str, key: str, model: str, *, clients: int = 6, tokens: int = 150) -> Iterator[Load]:
    """Load for as long as the block runs; behind it, every answer has ended."""
    load = Load(url, key, model, clients, tokens)
    thread = threading.Thread(target=lambda: asyncio.run(load._people()))
    thread.start()
    try:
        yield load
    finally:
        load._over.set()
        thread.join()
