"""What a request says of an answer."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.dialects.feedback import FeedbackRequest
from app.errors import InvalidRequest
from app.feedback import own_id
from app.messages import Message, ToolCall


@pytest.mark.parametrize(
    ("said", "rating"),
    [
        ({"rating": "up"}, 1.0),
        ({"rating": "good"}, 1.0),
        ({"rating": "down"}, -1.0),
        ({"rating": "bad"}, -1.0),
        ({"rating": 0}, 0.0),
        ({"rating": 0.5}, 0.5),
        ({"stars": 1}, -1.0),  # (1 - 3) / 2
        ({"stars": 4}, 0.5),
        ({"stars": 5}, 1.0),
        ({"rating": None}, None),
    ],
)
def test_every_scale_becomes_minus_one_to_one(said: dict[str, Any], rating: float | None) -> None:
    """Words, numbers, stars; null withdraws."""
    assert FeedbackRequest(turn_id="t", **said).opinion() == {"rating": rating}


def test_only_what_is_said_changes() -> None:
    """An absent field is none of the opinion, a null one is."""
    assert FeedbackRequest(turn_id="t", comment=None).opinion() == {"comment": None}


def test_a_correction_is_a_text_or_a_message() -> None:
    """With tool calls, as chat completions write them."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message: Any = {"role": "assistant", "tool_calls": [call]}
    calling = Message(role="assistant", tool_calls=(ToolCall(id="c", name="f", arguments="{}"),))
    assert FeedbackRequest(turn_id="t", correction=message).opinion() == {"correction": calling}
    plain = FeedbackRequest(turn_id="t", correction="Yes.").opinion()
    assert plain == {"correction": Message(role="assistant", content="Yes.")}


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"rating": "up"}, "turn_id"),
        ({"turn_id": "t", "request_id": "r", "rating": "up"}, "turn_id"),
        ({"turn_id": "t"}, "rating"),
        ({"turn_id": "t", "rating": "up", "stars": 5}, "stars"),
        ({"turn_id": "t", "rating": 4}, "rating"),
        ({"turn_id": "t", "correction": " "}, "correction"),
        ({"turn_id": "t", "correction": {"role": "user", "content": "x"}}, "correction.role"),
        ({"turn_id": "t", "correction": {"role": "assistant", "bogus": 1}}, "correction.bogus"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(said: dict[str, Any], param: str) -> None:
    """No turn, two turns, nothing said, two scales, stars where a rating goes, a correction that is none."""
    with pytest.raises(InvalidRequest) as refused:
        FeedbackRequest(**said).opinion()
    assert refused.value.param == param


@pytest.mark.parametrize("said", [{"rating": -2}, {"rating": True}, {"rating": "great"}, {"stars": 0}, {"thumbs": 1}])
def test_what_is_no_feedback_is_refused(said: dict[str, Any]) -> None:
    """Out of range, of another type, unknown."""
    with pytest.raises(ValidationError):
        FeedbackRequest(turn_id="t", **said)


@pytest.mark.parametrize("told", ["req_1f", "chatcmpl-req_1f", "cmpl-req_1f", "msg_req_1f", "resp_1f"])
def test_every_dialect_s_id_leads_to_the_request(told: str) -> None:
    """As each writes it."""
    assert own_id(told) == "req_1f"


def test_an_id_that_the_client_chose_stays() -> None:
    """It is looked for as it is."""
    assert own_id("my-own") == "my-own"
