"""Secrets and personal data out of conversations, replaced by placeholders that stay the same within one.

`<EMAIL_1>` is the same person in all messages of a conversation, so that what was said still makes sense. Found are
secrets of known forms (detect-secrets), and by Presidio's pattern recognisers mail addresses, telephone numbers, cards,
bank accounts, social security numbers and IP addresses. Not found: names and addresses in plain words, which takes a
language model; see `Quality.redact` in train/quality.py.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

from app.messages import Message
from train.lines import Line, Preference

PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
TOKENS = ("GitHub Token", "GitLab Token", "JSON Web Token", "NPM tokens", "OpenAI Token", "PyPI Token",
          "SendGrid API Key", "Slack Token", "Square OAuth Secret", "Stripe Access Key",
          "Telegram Bot Token", "Twilio API Key", "Discord Bot Token", "Mailchimp Access Key")  # fmt: skip
VALUES = ("AWS Access Key", "Azure Storage Account access key", "Basic Auth Credentials", "Secret Keyword",
          "IBM Cloud IAM Key", "Artifactory Credentials")  # fmt: skip
"""Of detect-secrets' detectors, those whose whole match is the secret, and those that pick it out. Entropy is left out:
in a chat it finds hashes and base64, and breaks the answers that are about them."""
REST = re.compile(r"[\w-]*")  # of a token whose form is known for its beginning only
MIN_SECRET_CHARS = 6  # of a value behind `password =`: shorter ones are mostly words like `None`
MIN_SCORE = 0.4  # Presidio's, without context: telephone numbers have this


class Found(NamedTuple):
    """A piece of text to replace."""

    start: int
    end: int
    kind: str


class Redactor:
    """Replaces in one conversation. counts: of replacements, by kind."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._names: dict[tuple[str, str], str] = {}

    def text(self, text: str) -> str:
        """The text with placeholders."""
        pieces, start = [], 0
        for found in _outermost(find(text)):
            pieces += [text[start : found.start], self._placeholder(found.kind, text[found.start : found.end])]
            start = found.end
        return "".join([*pieces, text[start:]]) if pieces else text

    def message(self, message: Message) -> Message:
        """All of a message's texts; arguments of calls stay JSON."""
        calls = tuple(call.model_copy(update={"arguments": self.text(call.arguments)}) for call in message.tool_calls)
        said = {"content": self.text(message.content), "reasoning": self.text(message.reasoning)}
        return message.model_copy(update={**said, "tool_calls": calls})

    def line(self, line: Line) -> Line:
        return line._replace(messages=tuple(map(self.message, line.messages)))

    def preference(self, pair: Preference) -> Preference:
        prompt = tuple(map(self.message, pair.prompt))
        return pair._replace(prompt=prompt, chosen=self.message(pair.chosen), rejected=self.message(pair.rejected))

    def _placeholder(self, kind: str, value: str) -> str:
        self.counts[kind] += 1
        number = sum(known == kind for known, _ in self._names) + 1
        return self._names.setdefault((kind, value), f"<{kind}_{number}>")


def find(text: str) -> Iterator[Found]:
    """Everything to replace, in no order; pieces may overlap."""
    yield from (Found(match.start(), match.end(), "PRIVATE_KEY") for match in PRIVATE_KEY.finditer(text))
    for detector in _token_detectors():
        for pattern in detector.denylist:
            for match in pattern.finditer(text):
                rest = REST.match(text, match.end())
                yield Found(match.start(), rest.end() if rest else match.end(), "SECRET")
    yield from _values(text)
    for recogniser, kind in _recognisers():
        for result in recogniser.analyze(text, recogniser.supported_entities, None):
            if result.score >= MIN_SCORE:
                yield Found(result.start, result.end, kind)


def _values(text: str) -> Iterator[Found]:
    start = 0
    for line in text.splitlines(keepends=True):
        for detector in _value_detectors():
            for value in set(detector.analyze_string(line)):
                if len(value) >= MIN_SECRET_CHARS:
                    yield from (
                        Found(start + m.start(), start + m.end(), "SECRET") for m in re.finditer(re.escape(value), line)
                    )
        start += len(line)


def _outermost(found: Iterable[Found]) -> Iterator[Found]:
    """In order, without those that begin inside another."""
    end = 0
    for piece in sorted(found, key=lambda piece: (piece.start, -piece.end)):
        if piece.start >= end and piece.end > piece.start:
            yield piece
            end = piece.end


@cache
def _token_detectors() -> tuple[Any, ...]:
    return _detectors(TOKENS)


@cache
def _value_detectors() -> tuple[Any, ...]:
    return _detectors(VALUES)


def _detectors(kinds: Iterable[str]) -> tuple[Any, ...]:
    from detect_secrets.core.plugins.util import get_mapping_from_secret_type_to_class

    known = get_mapping_from_secret_type_to_class()
    return tuple(known[kind]() for kind in kinds)


@cache
def _recognisers() -> tuple[tuple[Any, str], ...]:
    from presidio_analyzer import predefined_recognizers as presidio

    class Email(presidio.EmailRecognizer):  # type: ignore[misc]  # no types
        """Presidio's downloads a list of top-level domains to check against, each time it cannot be reached anew."""

        def validate_result(self, pattern_text: str) -> bool:
            return "." in pattern_text.rpartition("@")[2]

    return (
        (Email(), "EMAIL"),
        (presidio.CreditCardRecognizer(), "CARD"),
        (presidio.IbanRecognizer(), "IBAN"),
        (presidio.UsSsnRecognizer(), "SSN"),
        (presidio.IpRecognizer(), "IP"),
        (presidio.PhoneRecognizer(), "PHONE"),
    )
