"""Made-up tools for the demo model, with requests that one of them plainly fits.

Most are a verb and an object drawn anew, so that the model learns to read the offer and not a list of names.
"""

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from train.demo_handbook import SLOTS
from train.demo_words import LISTS, TOOLS


class Tool(NamedTuple):
    """What is offered: the function's definition as JSON text, as clients send it."""

    name: str
    definition: str


class Call(NamedTuple):
    """A tool, a request for it, and the call that answers the request."""

    tool: Tool
    request: str
    text: str


class _Argument(NamedTuple):
    """A parameter as requests word it. wordings: the last is held out."""

    slot: str
    kind: str
    names: tuple[str, ...]
    wordings: tuple[str, ...]


class Part(NamedTuple):
    """A name or value in a call: characters of the answer, and where they stand in the offer, or in the request."""

    start: int
    length: int
    source: int
    offered: bool


class Offer(NamedTuple):
    """A tool in the system prompt: from its name to the end of its description, characters."""

    start: int
    end: int


ARGUMENTS = (
    _Argument("city", "string", ("city", "location", "place"), (" in {}", " at {}", " located in {}")),
    _Argument("person", "string", ("name", "person", "user"), (" for {}", " of {}", " belonging to {}")),
    _Argument("number", "integer", ("count", "limit", "minutes"), (" with {}", " up to {}", ", namely {}")),
    _Argument("date", "string", ("date", "day", "when"), (" on {}", " from {}", " dated {}")),
    _Argument("code", "string", ("id", "code", "number"), (" with id {}", " number {}", " with the code {}")),
    _Argument("company", "string", ("company", "customer", "account"), (" of {}", " for {}", " at the company {}")),
)
OFFERED = re.compile(r'"name": "([^"]+)", "description": "([^"]*)"')
CALLED = re.compile(r'<tool_call>\n\{"name": "([^"]+)"')
THINGS = LISTS["object"] + LISTS["system"] + LISTS["document"] + LISTS["event"]
NAMED = (" with {key} {value}", " where {key} is {value}", ", {key}: {value}", " and set {key} to {value}")
RANDOM = ("run {words}", "call {words}", "start {words}", "{words}", "do {words}", "use {words}")
PLEASE = ("{}", "{}", "Please {}", "Can you {}?", "I want to {}.", "Could you {}, please?")
PLEASE_HELD_OUT = ("I need you to {}.", "Would you {}?")


def definition(name: str, description: str, parameters: dict[str, tuple[str, str]]) -> Tool:
    """parameters: name → (JSON type, description). All are required."""
    properties = {key: {"type": kind, "description": words} for key, (kind, words) in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    function = {"name": name, "description": description, "parameters": schema}
    return Tool(name, json.dumps({"type": "function", "function": function}, ensure_ascii=False))


def call(rng: random.Random, *, held_out: bool, words: Sequence[str] = (), thing: str | None = None) -> Call:
    """A tool, a request that it fits, and the call.

    words: that some tools are made of, whose names mean nothing. thing: that the tool deals with, if it can.
    """
    kind = rng.random()
    if kind < 0.3 and thing is None:
        return _known(rng, held_out=held_out)
    if kind < 0.5 and words:
        return _random(rng, words, held_out=held_out)
    return _coined(rng, thing or rng.choice(THINGS), held_out=held_out)


def text(name: str, arguments: Mapping[str, object]) -> str:
    """A call in the Hermes format."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def _known(rng: random.Random, *, held_out: bool) -> Call:
    tool = rng.choice(TOOLS)
    arguments: dict[str, object] = {}
    words = {}
    for key, slot in tool["parameters"].items():
        words[key] = SLOTS[slot](rng)
        arguments[key] = int(words[key]) if slot == "number" else words[key]
    wordings = tool["requests"][-1:] if held_out else tool["requests"][:-1]
    kinds = {
        key: ("integer" if slot == "number" else "string", f"The {key}.") for key, slot in tool["parameters"].items()
    }
    request: str = rng.choice(wordings).format(**words)
    return Call(definition(tool["name"], tool["description"], kinds), request, text(tool["name"], arguments))


def _spelled(rng: random.Random, words: Sequence[str]) -> str:
    """A function's name, in one of the usual spellings."""
    kind = rng.random()
    if kind < 0.2:
        return "".join(word.capitalize() if index else word for index, word in enumerate(words))
    return ("_" if kind < 0.9 else "-").join(words)


def _random(rng: random.Random, words: Sequence[str], *, held_out: bool) -> Call:
    """A tool whose name and parameters are words drawn by chance: they can only be copied."""
    named = [rng.choice(words) for _ in range(rng.randint(1, 3))]
    keys = list(dict.fromkeys(rng.choice(words) for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3]))))
    asked, arguments, kinds = rng.choice(RANDOM).format(words=" ".join(named)), {}, {}
    forms = NAMED[-1:] if held_out else NAMED[:-1]
    for key in keys:
        if rng.random() < 0.4:
            value = " ".join(rng.choice(words) for _ in range(rng.randint(1, 3)))
            number = False
        else:
            slot = rng.choice(["number", "number", "code", "date", "person", "city", "thing"])
            value, number = SLOTS[slot](rng), slot == "number"
        asked += rng.choice(forms).format(key=key, value=value)
        arguments[key] = int(value) if number else value
        kinds[key] = ("integer" if number else "string", rng.choice([f"The {key}.", "", rng.choice(words)]))
    described = " ".join(rng.choice(words) for _ in range(rng.randint(1, 6))) if rng.random() < 0.5 else " ".join(named)
    request = rng.choice(PLEASE_HELD_OUT if held_out else PLEASE).format(asked)
    name = _spelled(rng, named)
    return Call(
        definition(name, described.capitalize(), kinds), request[0].upper() + request[1:], text(name, arguments)
    )


def _coined(rng: random.Random, thing: str, *, held_out: bool) -> Call:
    verb = rng.choice(LISTS["tool_verbs"])
    name = _spelled(rng, f"{verb} {thing}".replace("-", " ").split())
    chosen = rng.sample(ARGUMENTS, rng.choice([0, 1, 1, 1, 2]))
    asked, arguments, kinds = f"{verb} the {thing}", {}, {}
    for argument in chosen:
        key, value = rng.choice(argument.names), SLOTS[argument.slot](rng)
        asked += rng.choice(argument.wordings[-1:] if held_out else argument.wordings[:-1]).format(value)
        arguments[key] = int(value) if argument.kind == "integer" else value
        kinds[key] = (argument.kind, rng.choice([f"The {key}.", f"{key.capitalize()} of the {thing}", ""]))
    request = rng.choice(PLEASE_HELD_OUT if held_out else PLEASE).format(asked)
    described = rng.choice([f"{verb.capitalize()} a {thing}.", f"{verb.capitalize()} the {thing}", f"{verb} {thing}"])
    return Call(definition(name, described, kinds), request[0].upper() + request[1:], text(name, arguments))


def offered(system: str) -> list[Offer]:
    """The tools of a system prompt that `train.chat.offer` wrote."""
    return [Offer(found.start(1), found.end(2)) for found in OFFERED.finditer(system)]


def called(answer: str) -> str | None:
    """The name in a call; None where the answer is none."""
    found = CALLED.match(answer)
    return found[1] if found else None


def parts(answer: str, system: str, request: str) -> list[Part]:
    """What a call copies: the function's name, and each argument's key and value. Empty where the answer is no call."""
    name = called(answer)
    if name is None:
        return []
    arguments = json.loads(answer.split("\n")[1])["arguments"]
    start = system.index(f'"name": "{name}"') + len('"name": "')
    found = [Part(answer.index(name), len(name), start, offered=True)]
    cursor = found[0].start + len(name)
    for key, value in arguments.items():
        said = str(value)
        cursor = answer.index(f'"{key}": ', cursor) + 1
        found.append(Part(cursor, len(key), system.index(f'"{key}": {{', start) + 1, offered=True))
        cursor = answer.index(said, cursor + len(key))
        if said in request:
            found.append(Part(cursor, len(said), request.rindex(said), offered=False))
    return found
