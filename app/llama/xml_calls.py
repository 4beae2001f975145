r"""Calls that models write as XML: Qwen3-Coder's and GLM's. Coroutines over a `Reader`.

coder  <function=name><parameter=key>\nvalue\n</parameter></function></tool_call>
glm    name<arg_key>key</arg_key><arg_value>value</arg_value></tool_call>

A value is plain text; the schema of the function tells what it means. Where that allows a string only, it is told as
it comes, otherwise when it is whole: as the JSON that it is, if that is of a type that the schema allows, else as a
string.
"""

import json
from collections.abc import Mapping
from typing import Any

from app.llama.grammar import OF_TYPE
from app.llama.json_scan import JsonScan, MalformedError
from app.llama.reader import Reader, Steps
from app.messages import JsonSchema

TEXT = frozenset({"string"})
NAMES: dict[type, str] = {str: "string", dict: "object", list: "array", bool: "boolean", type(None): "null"}
WORDS = {"True": "true", "False": "false", "None": "null"}  # as Python writes them, and so do models


def coder(reader: Reader) -> Steps[None]:
    """Qwen3-Coder's, and that of models taught like it."""
    if (yield from reader.blank()) != "<":
        raise MalformedError
    yield from reader.exactly("function=")
    schema = _begin(reader, (yield from reader.until(">")))
    separator = "{"
    while (char := (yield from _next(reader))) == "<":
        mark = yield from reader.until(">")
        if mark == "/function":
            break
        kind, _, key = mark.partition("=")
        if kind != "parameter" or not key:
            raise MalformedError
        reader.tell(f"{separator}{_quoted(key)}: ")
        yield from _value(reader, kinds(schema, key), ("\n</parameter>", "</parameter>"))
        separator = ", "
    if char != "<":
        raise MalformedError
    reader.tell("{}" if separator == "{" else "}")
    reader.end()
    if (yield from reader.blank()) != "<":
        raise MalformedError
    yield from reader.exactly("/tool_call>")


def glm(reader: Reader) -> Steps[None]:
    """GLM's from 4.5 on."""
    char = yield from reader.blank()
    name = ""
    while not (char == "<" or char.isspace()):
        if len(name) > 256:
            raise MalformedError
        name += char
        char = yield
    schema = _begin(reader, name)
    if char != "<":
        char = yield from _next(reader)
    separator = "{"
    while char == "<" and (mark := (yield from reader.until(">"))) == "arg_key":
        key = (yield from reader.until("</arg_key>")).strip()
        if (yield from reader.blank()) != "<":
            raise MalformedError
        yield from reader.exactly("arg_value>")
        reader.tell(f"{separator}{_quoted(key)}: ")
        yield from _value(reader, kinds(schema, key), ("</arg_value>",), line=False)
        separator = ", "
        char = yield from _next(reader)
    if char != "<" or mark != "/tool_call":
        raise MalformedError
    reader.tell("{}" if separator == "{" else "}")
    reader.end()


def kinds(schema: JsonSchema, key: str) -> frozenset[str]:
    """The types that a function's schema allows for one of its parameters; all of them where it does not say."""
    properties = schema.get("properties")
    known = properties.get(key) if isinstance(properties, dict) else None
    return _kinds(known, schema, 0) or frozenset(("integer", "number", *NAMES.values()))


def _kinds(schema: Any, root: JsonSchema, depth: int) -> frozenset[str]:
    """Empty: any."""
    if not isinstance(schema, dict) or depth > 16:
        return frozenset()
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _kinds(_target(root, reference), root, depth + 1)
    for keyword in ("anyOf", "oneOf"):
        if isinstance(schema.get(keyword), list):
            ways = [_kinds(way, root, depth + 1) for way in schema[keyword]]
            return frozenset().union(*ways) if all(ways) else frozenset()
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    given = schema.get("type")
    named = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    if not named and isinstance(values, list):
        named = [_kind(value) for value in values]
    if not named:
        named = [kind for kind, keywords in OF_TYPE.items() if not schema.keys().isdisjoint(keywords)][:1]
    if named and schema.get("nullable"):
        named = [*named, "null"]
    return frozenset(map(str, named))


def _target(root: JsonSchema, reference: str) -> Any:
    found: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found


def _kind(value: Any) -> str:
    return NAMES.get(type(value)) or ("integer" if float(value).is_integer() else "number")


def typed(text: str, allowed: frozenset[str]) -> str:
    """A value as JSON."""
    bare = text.strip()
    try:
        written = WORDS.get(bare, bare)
        kind = _kind(json.loads(written, parse_constant=_refuse))
    except (ValueError, RecursionError, OverflowError):
        return _quoted(text)
    fits = kind in allowed or (kind == "integer" and "number" in allowed)
    return written if fits and kind != "string" else _quoted(text)


def _begin(reader: Reader, name: str) -> JsonSchema:
    reader.begin(name)
    return reader.tools[name]


def _next(reader: Reader) -> Steps[str]:
    """Up to where a parameter or the end of the call begins."""
    reader.between = True
    char = yield from reader.blank()
    reader.between = False
    return char


def _value(reader: Reader, allowed: frozenset[str], marks: tuple[str, ...], *, line: bool = True) -> Steps[None]:
    """A value up to the mark behind it, told as JSON. line: it stands on lines of its own.

    Where no string is allowed, a mark within a string of JSON ends nothing.
    """
    held, whole, plain = "", list[str](), allowed == TEXT
    scan = None if "string" in allowed else JsonScan()
    if plain:
        reader.tell('"')
    char = yield
    if not (line and char == "\n"):
        held = char
        scan = _scanned(scan, char)
    while not (mark := next((mark for mark in marks if held.endswith(mark)), "")):
        unsure = 0 if scan and scan.within else _unsure(held, marks)
        sure, held = held[: len(held) - unsure], held[len(held) - unsure :]
        if plain and sure:
            reader.tell(_quoted(sure)[1:-1])
        whole.append(sure)
        char = yield
        held += char
        scan = _scanned(scan, char)
    whole.append(held.removesuffix(mark))
    reader.tell('"' if plain else typed("".join(whole), allowed))


def _scanned(scan: JsonScan | None, char: str) -> JsonScan | None:
    """None where it is JSON no more."""
    try:
        return scan if scan and scan.push(char) and not scan.done else None
    except MalformedError:
        return None


def _unsure(held: str, marks: tuple[str, ...]) -> int:
    """Length of the longest end of what is held with which a mark begins."""
    places = (at for at, char in enumerate(held) if char in "\n<" and any(mark.startswith(held[at:]) for mark in marks))
    return len(held) - next(places, len(held))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _refuse(constant: str) -> Any:
    raise ValueError(constant)  # NaN and Infinity are no JSON
