"""Calls that models write as JSON: Hermes', Mistral's, Devstral's and Llama's. Coroutines over a `Reader`.

Keys come in any order; arguments that stand before the name, or in a string, are told when they are whole.
"""

import json

from app.llama.json_scan import MalformedError
from app.llama.reader import Reader, Steps

ARGUMENTS = ("arguments", "parameters")
LLAMA_KEYS = frozenset({"name", "id", "type", *ARGUMENTS})  # any other one, and the JSON is the answer itself


def hermes(reader: Reader) -> Steps[None]:
    """An object or a list of them, and the closing mark."""
    yield from _calls(reader, (yield from reader.blank()))
    if (yield from reader.blank()) != "<":
        raise MalformedError
    yield from reader.exactly("/tool_call>")


def mistral(reader: Reader) -> Steps[None]:
    """A list of objects, or one."""
    yield from _calls(reader, (yield from reader.blank()))


def devstral(reader: Reader) -> Steps[None]:
    """A name and an object; or as Mistral's other models."""
    char = yield from reader.blank()
    if char in "[{":
        yield from _calls(reader, char)
        return
    name = char + (yield from reader.until("["))
    mark = yield from reader.until("]")
    if mark == "CALL_ID":
        yield from reader.until("[")
        mark = yield from reader.until("]")
    if mark != "ARGS" or (char := (yield from reader.blank())) != "{":
        raise MalformedError
    reader.begin(name.strip())
    yield from reader.told_value(char)
    reader.end()


def llama(reader: Reader) -> Steps[None]:
    """As Mistral's, but JSON may also be what was asked for."""
    yield from _calls(reader, (yield from reader.blank()), LLAMA_KEYS)


def _calls(reader: Reader, char: str, keys: frozenset[str] | None = None) -> Steps[None]:
    listed = char == "["
    more = True
    while more:
        if listed:
            char = yield from reader.blank()
        if char != "{":
            raise MalformedError
        more = (yield from _call(reader, keys)) and listed
        if more:
            char = yield from reader.blank()
            if char not in ",]":
                raise MalformedError
            more = char == ","
            reader.settle()


def _call(reader: Reader, keys: frozenset[str] | None) -> Steps[bool]:
    """An object behind its bracket: name, arguments, and what else the model thinks of. Whether more may follow."""
    name, waiting, whole, more = "", "", False, True
    char = ","
    while char == ",":
        if (yield from reader.blank()) != '"':
            raise MalformedError
        key = json.loads((yield from reader.value('"')))
        if (yield from reader.blank()) != ":" or (keys and key not in keys):
            raise MalformedError
        char = yield from reader.blank()
        if key in ARGUMENTS and name and char == "{" and not whole:
            reader.begin(name)
            yield from reader.told_value(char)
            whole, more = True, reader.end()
        else:
            text = yield from reader.value(char)
            if key == "name" and not name:
                name = _name(reader, text)
            elif key in ARGUMENTS and not whole and not waiting:
                waiting = _object(text)
        if name and waiting and not whole:
            reader.begin(name)
            reader.tell(waiting)
            whole, more = True, reader.end()
        char = yield from reader.blank()
    if char != "}" or not whole:
        raise MalformedError
    reader.settle()
    return more


def _name(reader: Reader, text: str) -> str:
    name = json.loads(text)
    if not isinstance(name, str) or name not in reader.tools:
        raise MalformedError
    return name


def _object(text: str) -> str:
    """The text of an object, which may itself stand in a string."""
    found = json.loads(text)
    if isinstance(found, str):
        try:
            text, found = found, json.loads(found, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise MalformedError from error
    if not isinstance(found, dict):
        raise MalformedError
    return text


def _refuse(constant: str) -> object:
    raise ValueError(constant)  # NaN and Infinity are no JSON
