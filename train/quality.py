"""What is worth learning from: checks of conversations and of single answers. Pure functions.

An answer that fails a check keeps its place with weight 0, as context for those behind it; a conversation of which
nothing is learnt any more is dropped, for the reason of its last answer. Refusals are recognised in English.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import jsonschema
from pydantic import Field

from app.messages import JsonSchema, Message, Strict, Tool
from train.domain import Domain
from train.lines import Line, Preference

ABLE = "assist|help with|provide|answer|fulfil|comply|do (?:that|this)|perform|access|browse|discuss|engage|offer|give"
REFUSAL = re.compile(
    r"^.{0,60}?\b(?:"
    rf"i (?:can(?:not|['’]?t)|won['’]t|will not|am (?:unable|not able) to|do(?: not|n['’]t) have the \w+ to) (?:{ABLE})"
    r"|as an? (?:ai|artificial intelligence|(?:large )?language model)\b)",
    re.IGNORECASE | re.DOTALL,
)
OPEN_END = re.compile(r"(?:[:(\[{]|\b(?:and|or|but|the|a|an|of|to|in|with|for|is|are|that|which|because))\s*$")
FENCE = re.compile(r"^\s*```[\w+#.-]*\s*$", re.MULTILINE)
LOOP_WORDS, LOOP_TIMES, LOOP_PERIOD = 12, 4, 40
"""A loop: at least 12 words that are 4 or more repetitions of 1 to 40 words. "ha ha ha" is none."""
LANGUAGE_CHARS = 40  # shorter texts are too little to tell a language by


class Quality(Strict):
    """The parameters of the stage `validate`. None: no limit."""

    min_turns: int = Field(1, ge=1)  # questions of people
    max_turns: int | None = Field(None, ge=1)
    min_chars: int = Field(1, ge=0)  # of an answer without calls
    max_chars: int | None = Field(32_768, ge=1)
    languages: tuple[str, ...] = ()  # ISO 639-1, of the whole conversation; empty: any
    refusals: bool = True  # drop what looks like one
    loops: bool = True
    truncated: bool = True
    tool_calls: bool = True  # must be of offered tools, with arguments that satisfy their schemas
    json_schema: Domain | None = None  # answers without calls must be JSON that satisfies it: train/domain.py
    duplicates: float | None = Field(0.9, gt=0, le=1)  # Jaccard similarity of word 3-grams above which one of two goes
    redact: bool = True  # secrets and personal data: train/redact.py


class Verdict(NamedTuple):
    """What became of a line. line None: it was dropped, for `reason`. unlearnt: answers without weight now, by why."""

    line: Line | None
    reason: str | None
    unlearnt: Counter[str]


def judge(line: Line, quality: Quality) -> Verdict:
    """Check a conversation and each learnt answer of it."""
    unlearnt: Counter[str] = Counter()
    if not any(line.weights):
        return Verdict(None, "nothing in it is to be learnt", unlearnt)
    if reason := next(_of_conversation(line, quality), None):
        return Verdict(None, reason, unlearnt)
    weights, last = list(line.weights), ""
    for place, message in enumerate(line.messages):
        if weights[place] and (wrong := fault(message, line.tools, quality)):
            weights[place], last = 0, wrong
            unlearnt[wrong] += 1
    if not any(weights):
        return Verdict(None, last, unlearnt)
    return Verdict(line._replace(weights=tuple(weights)), None, unlearnt)


def judge_preference(pair: Preference, quality: Quality) -> str | None:
    """Why a preference is dropped; None: it is not. The rejected answer may be as bad as it likes."""
    if pair.chosen == pair.rejected:
        return "both answers are the same"
    line = Line((*pair.prompt, pair.chosen), (*(0 for _ in pair.prompt), 1), pair.tools)
    return next(_of_conversation(line, quality), None) or fault(pair.chosen, pair.tools, quality)


def fault(answer: Message, tools: Sequence[Tool], quality: Quality) -> str | None:
    """What is wrong with an answer; None: nothing."""
    text = answer.content.strip()
    if answer.tool_calls:
        return call_fault(answer, tools) if quality.tool_calls else None
    if len(text) < quality.min_chars:
        return "answer too short"
    if quality.max_chars is not None and len(text) > quality.max_chars:
        return "answer too long"
    checks: tuple[tuple[bool, Callable[[str], bool], str], ...] = (
        (quality.truncated, truncated, "truncated answer"),
        (quality.loops, looping, "repeats itself"),
        (quality.refusals, refuses, "refusal"),
    )
    for wanted, check, reason in checks:
        if wanted and check(text):
            return reason
    if quality.json_schema is not None:
        return json_fault(text, quality.json_schema)
    return None


def refuses(text: str) -> bool:
    """Whether an answer declines, as assistants do."""
    return REFUSAL.search(text[:240]) is not None


def truncated(text: str) -> bool:
    """Whether an answer stops in the middle: within a block of code, or behind a word that wants another."""
    return len(FENCE.findall(text)) % 2 == 1 or OPEN_END.search(text[-40:]) is not None


def looping(text: str) -> bool:
    """Whether an answer says the same words over and over."""
    words = text.split()
    for period in range(1, min(LOOP_PERIOD, len(words) // LOOP_TIMES) + 1):
        needed = max(LOOP_WORDS, period * LOOP_TIMES) - period
        run = 0
        for place in range(period, len(words)):
            run = run + 1 if words[place] == words[place - period] else 0
            if run >= needed:
                return True
    return False


def call_fault(answer: Message, tools: Sequence[Tool]) -> str | None:
    """What is wrong with the calls of an answer: of tools that were not offered, or not as their schemas want."""
    offered = {tool.name: tool for tool in tools}
    for call in answer.tool_calls:
        if call.name not in offered:
            return "calls a tool that was not offered"
        try:
            arguments = json.loads(call.arguments)
        except (ValueError, RecursionError):
            return "arguments of a call are no JSON"
        if not isinstance(arguments, dict):
            return "arguments of a call are no JSON object"
        if not satisfies(arguments, offered[call.name].parameters):
            return "arguments of a call do not satisfy the schema"
    return None


def json_fault(text: str, schema: JsonSchema) -> str | None:
    """What is wrong with an answer that has to be JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return "answer is no JSON"
    return None if satisfies(value, schema) else "answer does not satisfy the schema"


def satisfies(value: Any, schema: JsonSchema) -> bool:
    """Whether a value is as a schema wants it. A schema that is none is satisfied by nothing."""
    validator = _validator(json.dumps(schema, sort_keys=True))
    return validator is not None and bool(validator.is_valid(value))


@cache
def _validator(schema: str) -> Any:
    told = json.loads(schema)
    kind = jsonschema.validators.validator_for(told, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(told)
    except jsonschema.SchemaError:
        return None
    return kind(told)


def language(text: str) -> str:
    """ISO 639-1, as far as can be told without a large model."""
    import py3langid

    return str(py3langid.classify(text)[0])


def spoken(line: Line) -> str:
    """What people and assistants said, for telling languages and duplicates."""
    return "\n".join(message.content for message in line.messages if message.role in {"user", "assistant"})


def _of_conversation(line: Line, quality: Quality) -> Iterator[str]:
    turns = sum(message.role == "user" for message in line.messages)
    if turns < quality.min_turns:
        yield "too few turns"
    if quality.max_turns is not None and turns > quality.max_turns:
        yield "too many turns"
    if quality.languages and len(text := spoken(line)) >= LANGUAGE_CHARS and language(text) not in quality.languages:
        yield "another language"
