"""The people of the loop's demonstration: they replay real conversations, teach the server, and keep asking.

Of each conversation only what people said is sent; the next request quotes what the server answered, as in life.
Others ask documents of theirs, which the server could do before, and rate right answers up.
"""

import asyncio
import hashlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import httpx

from app.errors import Misconfigured
from train import demo_handbook, regression
from train.demo_examples import NO_SOURCES, REFUSAL, SMALLTALK
from train.loop_rehearsal import plain
from train.scores import f1

Part = Literal["corrected", "rated", "untouched"]
SHARES: tuple[tuple[Part, float], ...] = (("corrected", 0.7), ("rated", 0.8), ("untouched", 1.0))  # up to where
MODEL = "mindfu-demo"
AGREES = 0.5  # F1 with the reference, from which somebody who knows it would rate an answer up
TOGETHER, CROWD, PAUSE_S = 4, 2, 0.3  # conversations at a time; people who keep asking, and how long they read
MAX_TOKENS = 48
DOCUMENTS, UNANSWERED = 120, 40  # that people ask a question of, each; questions that none of them answers
PASSAGES = 2  # of documents, that a question may see

SOURCE = (
    "https://raw.githubusercontent.com/google-research-datasets/Taskmaster/"
    "6752abd89132d5dbcfb1528efa580f03ea839e5d/TM-4-2024/data/data_00.json"
)
"""Taskmaster-4 (B. Byrne and S. Ganesh, Google, CC BY 4.0): people order coffee. 4 MB."""


class Exchange(NamedTuple):
    """What somebody said, and what was answered in the data."""

    question: str
    reference: str


class Chat(NamedTuple):
    """A real conversation. part: what people do with the answers to it."""

    exchanges: tuple[Exchange, ...]
    part: Part

    def line(self) -> str:
        """As a line to learn from, or to judge by."""
        pairs = [
            (role, text) for pair in self.exchanges for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        return json.dumps({"messages": [{"role": role, "content": text} for role, text in pairs]})


def read(path: Path, most: int) -> list[Chat]:
    """The first conversations of a file: JSON Lines of {"messages": …}, or JSON as Taskmaster has it.

    Raises Misconfigured where it holds none that alternate between people and an assistant.
    """
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    told = [
        [(one["speaker"], one["text"]) for one in row["utterances"]]
        if "utterances" in row
        else [(one["role"], one["content"] or "") for one in row["messages"]]
        for row in rows
    ]
    chats = {chat.line(): chat for said in told if (chat := _chat(said))}  # each once
    if not chats:
        remedy = 'Give JSON Lines of {"messages": [...]} in which user and assistant take turns.'
        raise Misconfigured("--chats", f"{path} holds no conversation that can be replayed", remedy)
    return list(chats.values())[:most]


def _chat(said: Sequence[tuple[str, str]]) -> Chat | None:
    roles = [role for role, _ in said]
    if not said or roles != ["user", "assistant"] * (len(said) // 2) or not all(text.strip() for _, text in said):
        return None
    texts = [text for _, text in said]
    place = int.from_bytes(hashlib.sha256("\n".join(texts).encode()).digest()[:8]) / 2**64
    part = next(part for part, end in SHARES if place < end)
    return Chat(tuple(map(Exchange, texts[::2], texts[1::2])), part)


def download(folder: Path) -> Path:
    """Taskmaster-4's first file, kept. Raises Misconfigured where it cannot be reached."""
    path = folder / "taskmaster-4.json"
    if not path.exists():
        try:
            got = httpx.get(SOURCE, timeout=60, follow_redirects=True).raise_for_status()
        except httpx.HTTPError as error:
            remedy = "Give a file of conversations: make loop-demo CHATS=FILE."
            raise Misconfigured("--chats", f"{SOURCE} cannot be downloaded ({error})", remedy) from error
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(got.content)
    return path


class Answer(NamedTuple):
    """What was answered, by what name feedback knows it, and whether it came to its end."""

    text: str
    name: str
    ended: bool


class Known(NamedTuple):
    """A question to which the right answer is known: it ends, and holds `answer`. sources: passages it may see."""

    question: str
    answer: str = ""
    sources: int = 0


def known() -> tuple[list[tuple[str, str]], list[Known]]:
    """Documents (name and text), and what people ask whose right answer they know. None is of the regression set.

    A question of each document; questions that no document answers, with sources and without; half of the small talk
    that there is: the other half is rehearsed.
    """
    dealer = random.Random(0)  # noqa: S311 - the same each time
    exam = examined()
    documents, questions = [], []
    for number in range(DOCUMENTS):
        made = demo_handbook.write(dealer, held_out=False, facts=3)
        fact = dealer.choice(made.facts)
        documents.append((f"{number}-{made.title.rpartition('.')[0] or made.title}.txt", made.text))
        questions.append(Known(dealer.choice(fact.questions), fact.sentence, PASSAGES))
    for number in range(UNANSWERED):
        [fact] = demo_handbook.write(dealer, held_out=False, facts=1).facts
        alone = number % 2 == 0
        answer, sources = (NO_SOURCES, 0) if alone else (REFUSAL, PASSAGES)
        questions.append(Known(dealer.choice(fact.questions), answer, sources))
    questions += [Known(text, answer) for answer, texts in SMALLTALK for text in texts[::2]]
    return documents, [one for one in questions if plain(one.question) not in exam]


def examined() -> set[str]:
    """The questions of the regression set."""
    return {plain(item.messages[-1].content) for item in regression.read(regression.OWN)}


class People:
    """Users of one server, by a client of it. failed: statuses other than 200, and how often."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.answered, self.failed = 0, Counter[str]()

    async def ask(self, messages: Sequence[dict[str, str]], *, sources: int = 0) -> Answer:
        """An answer, greedy. sources: how many passages of documents it may see."""
        body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS}
        told = (
            await self.post("/v1/chat/completions", body | {"rag": {"top_k": sources} if sources else False})
        ).json()
        choice = told["choices"][0]
        return Answer(choice["message"]["content"] or "", told["id"], choice["finish_reason"] == "stop")

    async def post(self, path: str, body: object) -> httpx.Response:
        """Raises httpx.HTTPStatusError."""
        return (await self._http.post(path, json=body)).raise_for_status()

    async def get(self, path: str) -> dict[str, object]:
        """Raises httpx.HTTPStatusError."""
        told: dict[str, object] = (await self._http.get(path)).raise_for_status().json()
        return told

    async def upload(self, name: str, texts: Sequence[str]) -> str:
        """Lines as a file for training. Returns its id."""
        files = {"file": (name, "\n".join(texts).encode())}
        told = (await self._http.post("/v1/files", data={"purpose": "fine-tune"}, files=files)).raise_for_status()
        return str(told.json()["id"])

    async def replay(self, chats: Sequence[Chat]) -> Counter[str]:
        """Have all conversations again, and correct or rate the answers. Returns how many of each."""
        free, done = asyncio.Semaphore(TOGETHER), Counter[str]()

        async def one(chat: Chat) -> None:
            async with free:
                await self._replay(chat, done)

        await asyncio.gather(*map(one, chats))
        return done

    async def _replay(self, chat: Chat, done: Counter[str]) -> None:
        said: list[dict[str, str]] = []
        for question, reference in chat.exchanges:
            said.append({"role": "user", "content": question})
            answer = await self.ask(said)
            said.append({"role": "assistant", "content": answer.text})
            done["questions"] += 1
            if chat.part == "corrected":
                await self.post("/v1/feedback", {"request_id": answer.name, "correction": reference})
            elif chat.part == "rated":
                await self._rate(answer, f1(answer.text, reference) >= AGREES)
        done[chat.part] += 1

    async def practise(self, documents: Sequence[tuple[str, str]], questions: Sequence[Known]) -> Counter[str]:
        """Upload documents, ask, and rate each answer. Returns how many were rated up and down."""
        for name, text in documents:
            files = {"file": (name, text.encode())}
            (await self._http.post("/v1/documents/upload", files=files)).raise_for_status()
        free, done = asyncio.Semaphore(TOGETHER), Counter[str]()

        async def one(known: Known) -> None:
            async with free:
                answer = await self.ask([{"role": "user", "content": known.question}], sources=known.sources)
                right = answer.ended and known.answer in answer.text
                await self._rate(answer, right)
                done["up" if right else "down"] += 1

        await asyncio.gather(*map(one, questions))
        return done

    async def _rate(self, answer: Answer, up: bool) -> None:
        await self.post("/v1/feedback", {"request_id": answer.name, "rating": "up" if up else "down"})

    async def first_answers(self, chats: Sequence[Chat]) -> list[str]:
        """To the first question of each, one after the other: nothing else is in the batch."""
        return [(await self.ask([{"role": "user", "content": chat.exchanges[0].question}])).text for chat in chats]

    @asynccontextmanager
    async def crowd(self, chats: Sequence[Chat]) -> AsyncIterator[None]:
        """Keep asking for as long as the block runs; `answered` and `failed` count."""
        over = asyncio.Event()

        async def keep_asking(first: int) -> None:
            number = first
            while not over.is_set():
                question = chats[number % len(chats)].exchanges[0].question
                try:
                    await self.ask([{"role": "user", "content": question}])
                    self.answered += 1
                except httpx.HTTPStatusError as error:
                    self.failed[str(error.response.status_code)] += 1
                except httpx.TransportError as error:
                    self.failed[type(error).__name__] += 1
                number += CROWD
                await asyncio.sleep(PAUSE_S)

        tasks = [asyncio.create_task(keep_asking(first)) for first in range(CROWD)]
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(*tasks)
