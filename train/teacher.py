"""A model elsewhere that answers: any OpenAI- or Anthropic-compatible server. What is said to it and back is ours."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import httpx

from app.dialects.openai_messages import external
from app.errors import InvalidRequest, Unavailable
from app.messages import Message, Tool, ToolCall

Dialect = Literal["openai", "anthropic"]
Json = dict[str, Any]

TRIES, LONGEST_WAIT_S = 6, 60.0  # of one request that a busy server turns away, or a broken connection


class Answer(NamedTuple):
    """What the teacher said. whole: it was not cut short. tokens: of prompt and answer, as the server counts."""

    message: Message
    whole: bool
    prompt_tokens: int
    answer_tokens: int


class Teacher:
    """Asks one model of one server. url: up to /v1. who, setting: what messages call it, and where its url is set."""

    def __init__(
        self,
        url: str,
        dialect: Dialect,
        model: str,
        *,
        key: str | None,
        timeout_s: float,
        who: str = "teacher",
        setting: str = "generate.url",
    ) -> None:
        self._url, self._dialect, self._model = url.rstrip("/"), dialect, model
        self._who, self._setting = who, setting
        openai = {"Authorization": f"Bearer {key}"} if key else {}
        anthropic = {"anthropic-version": "2023-06-01"} | ({"x-api-key": key} if key else {})
        self._http = httpx.AsyncClient(headers=openai if dialect == "openai" else anthropic, timeout=timeout_s)

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, messages: Sequence[Message], tools: Sequence[Tool], **sampling: float) -> Answer:
        """One answer. sampling: max_tokens, temperature and their like. Raises InvalidRequest where the server refuses,
        Unavailable where it stays away or busy.
        """
        if self._dialect == "openai":
            return _from_openai(await self._post("chat/completions", self._to_openai(messages, tools) | sampling))
        return _from_anthropic(await self._post("messages", self._to_anthropic(messages, tools) | sampling))

    async def _post(self, path: str, body: Json) -> Json:
        wait, reason = 1.0, ""
        for _ in range(TRIES):
            try:
                got = await self._http.post(f"{self._url}/{path}", json=body)
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            else:
                if got.is_success:
                    return self._object(got)
                reason = f"{got.status_code} {got.text[:300]}"
                if got.status_code != 429 and got.status_code < 500:
                    raise InvalidRequest(f"The {self._who} at {self._url} refuses: {reason}", self._setting)
                told = got.headers.get("retry-after", "")
                wait = max(wait, float(told)) if told.isdecimal() else wait
            await asyncio.sleep(min(wait, LONGEST_WAIT_S))
            wait *= 2
        raise Unavailable(f"{self._who} at {self._url}", reason, LONGEST_WAIT_S)

    def _object(self, got: httpx.Response) -> Json:
        try:
            told = got.json()
        except ValueError:
            told = None
        if not isinstance(told, dict):
            raise InvalidRequest(f"What answers at {self._url} is no model: {got.text[:100]!r}", self._setting)
        return told

    def _to_openai(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Json:
        body: Json = {"model": self._model, "messages": [external(message) for message in messages]}
        offered = [{"type": "function", "function": _function(tool, "parameters")} for tool in tools]
        return body | ({"tools": offered} if offered else {})

    def _to_anthropic(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Json:
        system = "\n\n".join(message.content for message in messages if message.role == "system")
        told = [_anthropic(message) for message in messages if message.role != "system"]
        body: Json = {"model": self._model, "messages": told}
        offered = [_function(tool, "input_schema") for tool in tools]
        return body | ({"system": system} if system else {}) | ({"tools": offered} if offered else {})


def _function(tool: Tool, schema: str) -> Json:
    return {"name": tool.name, "description": tool.description, schema: tool.parameters or {"type": "object"}}


def _anthropic(message: Message) -> Json:
    if message.role == "tool":
        result = {"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content}
        return {"role": "user", "content": [result]}
    parts: list[Json] = [{"type": "text", "text": message.content}] if message.content else []
    parts += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
        for call in message.tool_calls
    ]
    return {"role": message.role, "content": parts}


def _from_openai(told: Json) -> Answer:
    try:
        choice, usage = told["choices"][0], told.get("usage") or {}
        said = choice["message"]
        calls = tuple(
            ToolCall(id=call["id"], name=call["function"]["name"], arguments=call["function"]["arguments"])
            for call in said.get("tool_calls") or ()
        )
        message = Message(role="assistant", content=said.get("content") or "", tool_calls=calls)
        whole = choice.get("finish_reason") in {"stop", "tool_calls"}
        return Answer(message, whole, int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0)))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InvalidRequest(f"The teacher's answer is none of OpenAI's ({error!r})", "generate.dialect") from error


def _from_anthropic(told: Json) -> Answer:
    try:
        parts, usage = told["content"], told["usage"]
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        calls = tuple(
            ToolCall(id=part["id"], name=part["name"], arguments=json.dumps(part["input"], ensure_ascii=False))
            for part in parts
            if part["type"] == "tool_use"
        )
        whole = told.get("stop_reason") in {"end_turn", "tool_use", "stop_sequence"}
        message = Message(role="assistant", content=text, tool_calls=calls)
        return Answer(message, whole, int(usage["input_tokens"]), int(usage["output_tokens"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"The teacher's answer is none of Anthropic's ({error!r})", "generate.dialect") from error
