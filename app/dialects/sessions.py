"""MindFu's own JSON: /chat, /generate, /models, /model/switch, /command. Field by field in docs/sessions.md."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, FailFast, Field

from app.answer import Choice
from app.dialects.events import Event, Json
from app.dialects.openai import error, sources
from app.dialects.openai_messages import ChatMessage, Exact
from app.dialects.openai_requests import MOST_TOKENS, Number
from app.errors import InvalidRequest, MindFuError
from app.messages import Delta, Done, Generate, Message, ModelFile, Passage, RagOptions, Sampling
from app.settings import ChatSettings
from app.tools.offer import ServerTools
from app.tools.runner import ToolRun

SESSION = Field(min_length=1, max_length=128, pattern=r"^[^\x00]+$")
SessionName = Annotated[str, SESSION]
SAMPLED = frozenset({"temperature", "top_p", "top_k", "repeat_penalty"})


class OwnRequest(Exact):
    """What /chat and /generate have in common. None takes the settings."""

    system_prompt: str | None = None
    temperature: Annotated[Number, Field(ge=0.0, le=2.0)] | None = None
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    top_p: Annotated[Number, Field(gt=0.0, le=1.0)] | None = None
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    repeat_penalty: Annotated[Number, Field(gt=0.0, le=10.0)] | None = None
    stream: bool | None = None
    model: str | None = Field(None, min_length=1, max_length=256)
    rag: bool | RagOptions | None = None

    def generate(
        self, request_id: str, tenant: str, model: str, messages: Sequence[Message], settings: ChatSettings
    ) -> Generate:
        """For the engine. `max_tokens` yields to the window."""
        given = self.model_dump(include=set(SAMPLED), exclude_none=True)
        return Generate(
            request_id=request_id,
            tenant=tenant,
            model=model,
            messages=tuple(messages),
            sampling=Sampling(**settings.model_dump(include=set(SAMPLED)) | given),
            max_tokens=self.max_tokens or settings.max_tokens,
            clip=True,
        )


class ChatRequest(OwnRequest):
    """POST /chat."""

    messages: Annotated[list[ChatMessage], FailFast()] = Field(max_length=10_000)
    session_id: SessionName | None = None
    enable_tools: ServerTools | None = None


class GenerateRequest(OwnRequest):
    """POST /generate."""

    prompt: str = Field(min_length=1)


class SwitchRequest(Exact):
    """POST /model/switch."""

    model_key: str = Field(min_length=1, max_length=256)


class CommandRequest(Exact):
    """POST /command. Without a value it tells."""

    command: Literal["system", "layers", "mem", "tools"]
    value: str | int | bool | None = None

    def prompt(self) -> str:
        """Of `system`. Raises InvalidRequest."""
        if not isinstance(self.value, str) or "\0" in self.value:
            raise _wrong(self.value, "a text without NUL characters")
        return self.value

    def layers(self) -> int:
        """Of `layers`: a number, or one as text. Raises InvalidRequest."""
        text = str(self.value).strip()
        if isinstance(self.value, bool) or not (text == "-1" or (text.isdecimal() and len(text) < 6)):
            raise _wrong(self.value, "-1 for all layers, 0 for none, or how many")
        return int(text)

    def switch(self) -> bool:
        """Of `tools`. Raises InvalidRequest."""
        if isinstance(self.value, bool):
            return self.value
        if self.value not in {"on", "off"}:
            raise _wrong(self.value, "'on' or 'off'")
        return self.value == "on"

    def only_tells(self) -> None:
        """Raises InvalidRequest where there is a value."""
        if self.value is not None:
            raise InvalidRequest(f"'{self.command}' only tells, and takes no value.", "value")


class Told(BaseModel):
    """The answer to a command. current_value: what holds now."""

    status: Literal["success"] = "success"
    message: str
    current_value: Any = None


class Switched(Told):
    """The answer to a switch. load_time: seconds."""

    model_key: str
    previous_model_key: str
    load_time: float


class About(NamedTuple):
    """What an answer tells beside itself. session: its fields, where there is one."""

    model_key: str
    device: str
    request_id: str
    conversation_id: str | None = None
    session: Json | None = None
    sources: Sequence[Passage] = ()


class OwnRenderer:
    """One answer of /chat or /generate."""

    def __init__(self, about: About) -> None:
        self.about = about
        self.tools: list[str] = []
        self._told = 0  # of them

    def opening(self) -> Iterable[Event]:
        """Nothing."""
        return ()

    def piece(self, delta: Delta) -> Iterable[Event]:
        """What there is of it, behind the calls that ran since the last piece."""
        yield from self._calls()
        if delta.reasoning:
            yield Event({"reasoning": delta.reasoning})
        if delta.text:
            yield Event({"token": delta.text})

    def ran(self, run: ToolRun) -> None:
        """Told with the next piece, and all together with the end."""
        self.tools.append(run.line())

    def closing(self, choices: Sequence[Choice], done: Done) -> Iterable[Event]:
        """All that the whole answer tells."""
        yield from self._calls()
        yield Event({"done": True, **self.whole(choices, done)})

    def error(self, exc: MindFuError) -> Iterable[Event]:
        """The error object, and no `done`."""
        yield Event(error(exc))

    def whole(self, choices: Sequence[Choice], done: Done) -> Json:
        """The answer of a request that did not stream."""
        (choice,), usage, timings = choices, done.usage, done.timings
        seconds = timings.prefill_s + timings.decode_s
        told = _answer(self.about, choice.text, done.finish_reason) | {
            "tokens_input": usage.prompt_tokens,
            "tokens_generated": usage.completion_tokens,
            "tokens_total": usage.prompt_tokens + usage.completion_tokens,
            "generation_time": round(seconds, 4),
            "tokens_per_second": round(usage.completion_tokens / seconds, 2) if seconds else 0.0,
            "tools_used": list(self.tools),
            "sources": sources(self.about.sources),
        }
        return told | ({"reasoning": choice.reasoning} if choice.reasoning else {})

    def _calls(self) -> Iterable[Event]:
        for line in self.tools[self._told :]:
            yield Event({"tool": line})
        self._told = len(self.tools)


def begun_anew(about: About) -> Json:
    """What /chat answers where there is nothing to answer: no messages."""
    return _answer(about, "", None)


def device(layers: int) -> str:
    """Where a model runs, by its layers on GPUs."""
    return {0: "CPU", -1: "GPU (all layers)"}.get(layers, f"GPU ({layers} layers) and CPU")


def model_entry(file: ModelFile, *, window: int, described: str, loaded: bool, current: bool) -> Json:
    """A model, for people who choose one. described: what the file says of itself."""
    return {
        "key": file.name,
        "name": file.name,
        "filename": file.file,
        "description": file.description or described,
        "context_length": window,
        "exists": file.exists,
        "recommended": file.recommended,
        "loaded": loaded,
        "current": current,
        "size_bytes": file.size,
        "vram_estimate": file.memory,
        "source": file.source,
        "layers": file.layers,
        "device": device(file.layers),
        "is_finetuned": False,
        "base_model": None,
        "training_data": None,
    }


def _answer(about: About, text: str, reason: str | None) -> Json:
    return {
        "response": text,
        "tokens_input": 0,
        "tokens_generated": 0,
        "tokens_total": 0,
        "generation_time": 0.0,
        "tokens_per_second": 0.0,
        "device": about.device,
        "tools_used": [],
        "finish_reason": reason,
        "model_key": about.model_key,
        "request_id": about.request_id,
        "conversation_id": about.conversation_id,
        **(about.session or {}),
        "sources": [],
    }


def _wrong(value: object, wanted: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid 'value': it must be {wanted} (got {value!r:.80}).", "value")
