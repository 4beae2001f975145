"""A client of a MindFu server: what `mindfu chat` is made of, and a beginning for programs of yours.

    with Client("http://127.0.0.1:11434") as mindfu:
        answer = mindfu.send_message("When does the backup run?")
        print(answer.response, answer.tokens_generated, answer.tools_used)
        mindfu.send_command("system", "Answer in one sentence.")
        mindfu.switch_model("big")
        mindfu.export_for_finetuning("training_data.jsonl")

The history is on the server, under the name of the session (docs/sessions.md). Every method raises Unavailable where
the server stays away, Answered where it refuses, and InvalidRequest where there is something else at its address.
"""

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar, get_args
from uuid import uuid4

import httpx
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from app.asking import CONNECT_S, Answered, Asking
from app.errors import InvalidRequest, Unavailable
from app.turns import Conversation, ConversationSummary
from app.whole_file import whole_file

DEFAULT_URL = "http://127.0.0.1:11434"
HEALTH_S = 5.0
LOADING = httpx.Timeout(600.0, connect=CONNECT_S)  # a model may have to be downloaded before it is switched to
Command = Literal["system", "layers", "mem", "tools"]
Format = Literal["text", "json", "jsonl"]
PieceKind = Literal["token", "reasoning", "tool"]
KINDS: tuple[PieceKind, ...] = get_args(PieceKind)
Kind = TypeVar("Kind", bound=BaseModel)


class Told(BaseModel):
    """What a server tells; a newer one may tell more."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class Answer(Told):
    """What `/chat` answers, field by field in docs/sessions.md."""

    response: str
    reasoning: str = ""
    tokens_input: int
    tokens_generated: int
    tokens_total: int
    generation_time: float  # seconds
    tokens_per_second: float
    device: str
    tools_used: tuple[str, ...]
    finish_reason: str | None = None
    model_key: str
    session_id: str | None = None
    conversation_id: str | None = None
    request_id: str
    dropped_messages: int = 0
    sources: tuple[dict[str, JsonValue], ...] = ()


class Done(Told):
    """The answer to a command."""

    status: str
    message: str
    current_value: JsonValue = None


class Model(Told):
    """One that may be switched to. exists: its file is on the server's machine. size_bytes, vram_estimate: bytes."""

    key: str
    description: str = ""
    context_length: int | None = None
    exists: bool
    recommended: bool = False
    loaded: bool = False
    current: bool = False
    size_bytes: int | None = None
    vram_estimate: int | None = None
    device: str = ""
    is_finetuned: bool = False


class Health(Told):
    """The state of the server. parts: `ok`, or what is wrong with each."""

    status: str
    model_key: str
    parts: dict[str, str]
    version: str


class Passage(Told):
    """A piece of a document that was found."""

    document_id: str
    title: str
    chunk: int
    score: float
    text: str
    page: int | None = None
    heading: str = ""


class Piece(NamedTuple):
    """Of an answer while it is being written. A tool is told when its call has run."""

    kind: PieceKind
    text: str


class Client:
    """One session with one server. timeout_s: that it may be silent; waiting: see app/asking.py.

    Without a name a session is a new one.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        key: str | None = None,
        *,
        session: str | None = None,
        timeout_s: float = 30.0,
        waiting: Callable[[str, float], object] = lambda _reason, _pause_s: None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.session = session or f"session-{uuid4().hex[:12]}"
        self._asking = Asking(url, key, timeout_s=timeout_s, waiting=waiting, transport=transport)
        self.url = self._asking.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._asking.close()

    def stream_message(self, text: str, **options: Any) -> Generator[Piece | Answer]:
        """Pieces as they are written, then the whole answer. options: further fields of `/chat`."""
        body = {"messages": [{"role": "user", "content": text}], "session_id": self.session, "stream": True}
        with self._asking.stream("POST", "/chat", json=body | options) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield from self._said(self._json(line.removeprefix("data: ")))

    def send_message(self, text: str, **options: Any) -> Answer:
        """The whole answer."""
        found = [item for item in self.stream_message(text, **options) if isinstance(item, Answer)]
        if not found:
            raise Unavailable("server", "the answer broke off")
        return found[-1]

    def begin_anew(self) -> None:
        """Let the session forget what was said; the conversation stays kept."""
        self._ask("POST", "/chat", json={"messages": [], "session_id": self.session})

    def send_command(self, command: Command, value: str | int | bool | None = None) -> Done:
        """Tell what holds; with a value, set it for everybody."""
        body = {"command": command} | ({} if value is None else {"value": value})
        return self._read(Done, self._ask("POST", "/command", json=body, timeout=LOADING))

    def models(self) -> list[Model]:
        """Those that may be switched to."""
        return [self._read(Model, one) for one in self._list(self._ask("GET", "/models"), "models")]

    def switch_model(self, key: str) -> Done:
        """Let another model answer everybody. Returns when it is loaded."""
        return self._read(Done, self._ask("POST", "/model/switch", json={"model_key": key}, timeout=LOADING))

    def health(self) -> Health:
        """The state of the server, ok or not. Asks once, for 5 s."""
        degraded = HTTPStatus.SERVICE_UNAVAILABLE
        return self._read(Health, self._ask("GET", "/health", tries=1, accept=degraded, timeout=HEALTH_S))

    def search(self, query: str, *, top_k: int = 5, collections: Sequence[str] | None = None) -> list[Passage]:
        """Passages of documents, best first."""
        body = {"query": query, "top_k": top_k} | ({"collections": list(collections)} if collections else {})
        found = self._ask("POST", "/v1/documents/query", repeatable=True, json=body)
        return [self._read(Passage, one) for one in self._list(found, "data")]

    def rate(self, request_id: str, **opinion: Any) -> None:
        """Judge an answer: `rating`, `stars`, `comment`, `correction` as docs/api.md says."""
        self._ask("POST", "/v1/feedback", repeatable=True, json={"request_id": request_id} | opinion)

    def conversations(self, **filters: str | int) -> list[ConversationSummary]:
        """Those that match, latest first. filters: `limit`, `after`, `q`, `model`, `rating`, `from`, `to`."""
        found = self._list(self._ask("GET", "/v1/conversations", params=filters), "data")
        return [self._read(ConversationSummary, one) for one in found]

    def conversation(self, conversation_id: str) -> Conversation:
        """One with all its turns."""
        return self._read(Conversation, self._ask("GET", f"/v1/conversations/{conversation_id}"))

    def export(self, form: Format, **filters: str | int | Sequence[str]) -> Iterator[str]:
        """Conversations that match, as text in pieces. filters: as of `conversations`, and `id`, one or several."""
        with self._asking.stream("GET", "/v1/conversations/export", params={"format": form} | filters) as response:
            yield from response.iter_text()

    def export_for_finetuning(self, path: str | Path, **filters: str | int | Sequence[str]) -> int:
        """Write one line for each conversation that has something to learn from. Returns how many."""
        lines = 0
        with whole_file(Path(path)) as file:
            for piece in self.export("jsonl", **filters):
                lines += piece.count("\n")
                file.write(piece)
        return lines

    def _ask(self, method: str, path: str, **request: Any) -> JsonValue:
        return self._json(self._asking.ask(method, path, **request).text)

    def _said(self, event: JsonValue) -> Iterator[Piece | Answer]:
        """What an event of a stream says. Kinds that we do not know are for others."""
        told = event if isinstance(event, dict) else {}
        if "error" in told:
            error = told["error"]
            message = error.get("message") if isinstance(error, dict) else None
            raise Answered(str(message or "the answer failed"), HTTPStatus.INTERNAL_SERVER_ERROR)
        if told.get("done"):
            yield self._read(Answer, told)
        for kind in KINDS:
            if isinstance(text := told.get(kind), str) and "done" not in told:
                yield Piece(kind, text)

    def _json(self, text: str) -> JsonValue:
        try:
            found: JsonValue = json.loads(text)
        except ValueError as error:
            raise self._stranger() from error
        return found

    def _list(self, found: JsonValue, name: str) -> list[JsonValue]:
        listed = found.get(name) if isinstance(found, dict) else None
        if not isinstance(listed, list):
            raise self._stranger()
        return listed

    def _read(self, kind: type[Kind], found: JsonValue) -> Kind:
        try:
            return kind.model_validate_json(json.dumps(found))
        except ValidationError as error:
            raise self._stranger() from error

    def _stranger(self) -> InvalidRequest:
        return InvalidRequest(f"What answers at {self.url} is no MindFu server, or one of another version.", "url")
