"""Redaction: secrets and personal data go, the sense stays."""

import pytest

from app.messages import Message, ToolCall
from train.lines import Line
from train.redact import Redactor


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to bob@example.org.", "Write to <EMAIL_1>."),
        ("Call +49 30 901820 now", "Call <PHONE_1> now"),
        ("card 4111 1111 1111 1111", "card <CARD_1>"),
        ("to DE89370400440532013000", "to <IBAN_1>"),
        ("from 192.0.2.17", "from <IP_1>"),
        ("key AKIAIOSFODNN7EXAMPLE", "key <SECRET_1>"),
        ("ghp_0123456789abcdef0123456789abcdef0123 works", "<SECRET_1> works"),
        ('password = "correct horse"', 'password = "<SECRET_1>"'),
        ("postgresql://me:s3cr3tpass@db/x", "postgresql://me:<SECRET_1>@db/x"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\nbye", "<PRIVATE_KEY_1>\nbye"),
    ],
)
def test_what_is_private_is_replaced(text: str, expected: str) -> None:
    """By its kind."""
    assert Redactor().text(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Order 12345678 of 2026-11-21 at 10:20:30 costs 19.99 EUR.",
        "def password(self) -> str: return None",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b",
        "Visit https://example.org/a?b=1#c",
    ],
)
def test_what_is_not_private_stays(text: str) -> None:
    """Numbers, dates, code, hashes and addresses of pages."""
    assert Redactor().text(text) == text


def test_one_person_is_one_placeholder() -> None:
    """In all messages of a conversation, the arguments of calls included; another person is another."""
    call = ToolCall(id="1", name="send", arguments='{"to": "bob@example.org"}')
    messages = (
        Message(role="user", content="Tell bob@example.org, not amy@example.org"),
        Message(role="assistant", tool_calls=(call,)),
    )
    redactor = Redactor()
    made = redactor.line(Line(messages, (0, 1)))
    assert made.messages[0].content == "Tell <EMAIL_1>, not <EMAIL_2>"
    assert made.messages[1].tool_calls[0].arguments == '{"to": "<EMAIL_1>"}'
    assert redactor.counts == {"EMAIL": 3}
