"""MindFu's own JSON: requests to /chat, /generate and /command, and their answers."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.answer import gather
from app.dialects.openai_messages import internal
from app.dialects.sessions import (
    About,
    ChatRequest,
    CommandRequest,
    GenerateRequest,
    OwnRenderer,
    begun_anew,
    device,
)
from app.errors import EngineFailed, InvalidRequest, MindFuError
from app.messages import Delta, Done, End, Message, Role, Timings, Usage
from app.sessions import answered, is_whole
from app.settings import ChatSettings
from app.tools.runner import ToolRun
from tests.fakes import DONE

ABOUT = About("m", "CPU", "req_1", "conv_1", {"session_id": "s", "dropped_messages": 0})
ROLES: dict[str, Role] = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


def chat(text: str) -> tuple[Message, ...]:
    """One message for each letter."""
    return tuple(Message(role=ROLES[part], content=part) for part in text)


@pytest.mark.parametrize(("said", "whole"), [("u", False), ("su", False), ("uau", True), ("ua", True), ("", False)])
def test_messages_with_an_answer_are_a_whole_conversation(said: str, whole: bool):
    """Others are new ones of a session."""
    assert is_whole(chat(said)) is whole


@pytest.mark.parametrize(
    ("said", "kept"), [("ua", "ua"), ("uau", "ua"), ("suatau", "suata"), ("u", ""), ("su", ""), ("", "")]
)
def test_a_history_ends_with_its_last_answer(said: str, kept: str):
    """What got none is not part of it."""
    assert answered(chat(said)) == chat(kept)


def test_what_a_request_does_not_say_the_settings_do():
    """Each by itself; zero is something that was said."""
    asked = GenerateRequest.model_validate({"prompt": "hi", "temperature": 0, "top_k": 0})
    made = asked.generate("r", "t", "m", chat("u"), ChatSettings(top_p=0.8, max_tokens=7))
    assert (made.sampling.temperature, made.sampling.top_k, made.sampling.top_p) == (0, 0, 0.8)
    assert (made.sampling.repeat_penalty, made.max_tokens, made.clip) == (1.1, 7, True)


@pytest.mark.parametrize(("layers", "told"), [(0, "CPU"), (-1, "GPU (all layers)"), (20, "GPU (20 layers) and CPU")])
def test_the_device_is_told_in_words(layers: int, told: str):
    """By the layers on GPUs."""
    assert device(layers) == told


@pytest.mark.parametrize(("value", "layers"), [(-1, -1), (0, 0), ("20", 20), (" 20 ", 20), ("-1", -1)])
def test_layers_are_a_number_or_its_text(value: object, layers: int):
    """As clients of other servers write them."""
    assert CommandRequest.model_validate({"command": "layers", "value": value}).layers() == layers


@pytest.mark.parametrize(("value", "on"), [("on", True), ("off", False), (True, True), (False, False)])
def test_tools_are_on_or_off(value: object, on: bool):
    """In words, or as JSON has it."""
    assert CommandRequest.model_validate({"command": "tools", "value": value}).switch() is on


def test_speed_is_that_of_the_model():
    """Seconds of reading and writing, without the time in the queue."""
    done = Done(
        (End("length"),), Usage(prompt_tokens=10, completion_tokens=6), Timings(queued_s=5, prefill_s=1, decode_s=2)
    )
    told = OwnRenderer(ABOUT).whole(gather([Delta("hello", 6)]), done)
    assert (told["generation_time"], told["tokens_per_second"], told["tokens_total"]) == (3.0, 2.0, 16)
    assert (told["finish_reason"], "reasoning" in told) == ("length", False)


def test_an_answer_to_nothing_has_the_fields_of_any_other():
    """So that clients need no second case."""
    assert set(begun_anew(ABOUT)) == set(OwnRenderer(ABOUT).whole(gather([Delta("x", 1)]), DONE))


def test_a_stream_tells_each_call_once_and_ends_with_the_whole():
    """Reasoning, calls and text as they come."""
    render = OwnRenderer(ABOUT)
    run = ToolRun(id="c", name="f", arguments='{"a": "x"}', status="success", result="{}", round=1, duration_s=0.1)
    deltas = [Delta("", 1, reasoning="hm"), Delta("a", 1), Delta("b", 1)]
    events = [*render.opening(), *render.piece(deltas[0])]
    render.ran(run)
    events += [*render.piece(deltas[1]), *render.piece(deltas[2])]
    render.ran(run)
    events += render.closing(gather(deltas), DONE)
    told: list[Any] = [event.data for event in events]
    assert told[:-1] == [{"reasoning": "hm"}, {"tool": "f(x)"}, {"token": "a"}, {"token": "b"}, {"tool": "f(x)"}]
    assert told[-1] == {"done": True} | render.whole(gather(deltas), DONE)
    assert (told[-1]["response"], told[-1]["reasoning"], told[-1]["tools_used"]) == ("ab", "hm", ["f(x)", "f(x)"])


def test_a_late_failure_is_an_error_object():
    """And no `done`."""
    (event,) = OwnRenderer(ABOUT).error(EngineFailed("it broke"))
    assert isinstance(event.data, dict)
    assert event.data["error"]["code"] == "engine_failed"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys([*ChatRequest.model_fields, "prompt", "value", "command"], VALUES)
)


@pytest.mark.parametrize("kind", [ChatRequest, GenerateRequest, CommandRequest])
@settings(max_examples=60, deadline=None)
@given(fields=FIELDS)
def test_no_json_breaks_the_translator(
    kind: type[ChatRequest | GenerateRequest | CommandRequest], fields: dict[str, Any]
):
    """Whatever comes, it is translated, or refused with what is the caller's fault."""
    good: dict[str, Any] = {"messages": [], "prompt": "hi", "command": "layers"}
    request = {name: value for name, value in (good | fields).items() if name in kind.model_fields}
    refusal = refused(kind, json.loads(json.dumps(request)))
    assert refusal is None or (isinstance(refusal, InvalidRequest) and refusal.param)


def refused(kind: type[ChatRequest | GenerateRequest | CommandRequest], request: dict[str, Any]) -> MindFuError | None:
    """Why a request of the right types cannot be; None: it can, or its types are wrong."""
    try:
        asked = kind.model_validate(request)
        if isinstance(asked, CommandRequest):
            asked.layers(), asked.switch(), asked.prompt()
        else:
            said = internal(asked.messages) if isinstance(asked, ChatRequest) else chat("u")
            asked.generate("r", "t", "m", said, ChatSettings())
    except ValidationError:
        return None
    except MindFuError as refusal:
        return refusal
    return None
