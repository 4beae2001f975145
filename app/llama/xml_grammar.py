"""The grammar of a call's parameters as XML, of which the values are plain text. Pure.

A string is written as it is, so of a string's keywords only enum, const, format and the lengths can be held. Text in a
value holds no `</`, so that it ends where the mark behind it begins, and no `<` where its length is bounded.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from app.errors import InvalidRequest
from app.llama.expressions import FORMATS, times
from app.llama.grammar import KEYS, STRING_CHARS, Writer
from app.llama.patterns import literal
from app.llama.xml_calls import TEXT, kinds
from app.messages import JsonSchema

PLAIN_LETTER = "[^<\\x00-\\x08\\x0B-\\x1F\\x7F]"
LETTER = f'letter ::= {PLAIN_LETTER} | "<"{{1,8}} [^</\\x00-\\x08\\x0B-\\x1F\\x7F]'
KEY = "[A-Za-z_] [A-Za-z0-9_-]{0,63}"
UNNAMED = re.compile(r"[<>\x00-\x1F\x7F]")  # in no name; nor is space at an end of one, which is not read back
PLAIN = frozenset({"type", "title", "description", "default", "examples", "nullable", "deprecated"})
HELD = ("enum", "const", "format", "minLength", "maxLength")


class Marks(NamedTuple):
    """What stands before a key, before its value, and behind that."""

    key: str
    value: str
    end: str


class XmlWriter(Writer):
    """Writes the parameters of one function."""

    def parameters(self, schema: JsonSchema, path: str, marks: Marks) -> str:
        """The expression of all parameters, in the order of the schema.

        Raises InvalidRequest, naming the place, where strict and the schema cannot be held in this form.
        """
        if combined := [keyword for keyword in ("$ref", "allOf", "anyOf", "oneOf") if keyword in schema]:
            self._unsupported(combined[0], path, "this model writes parameters as XML")
            schema = {}
        properties, required = schema.get("properties") or {}, schema.get("required") or []
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise InvalidRequest(f"'{path}.properties' must be an object, and 'required' a list.", path)
        for keyword in ("minProperties", "maxProperties", "propertyNames", "patternProperties"):
            if keyword in schema:
                self._unsupported(keyword, path, "this model writes parameters as XML")
        known = dict(properties) | {name: True for name in required if name not in properties}
        written = [self._parameter(schema, name, name in required, path, marks) for name in known]
        more = schema.get("additionalProperties", not known)
        if more is not False:
            if isinstance(more, dict) and more:
                self._unsupported("additionalProperties", path, "of this model's XML, only true and false are")
            extra = self._rule("extra", f"{literal(marks.key)} {KEY} {literal(marks.value)} {self._text({})}")
            written.append(f"({extra} {literal(marks.end)}){{0,{KEYS // 4}}}")
        return " ".join(written) or '""'

    def _parameter(self, schema: JsonSchema, name: Any, required: bool, path: str, marks: Marks) -> str:
        place = f"{path}.properties.{name}"
        if not isinstance(name, str) or name != name.strip() or not name or UNNAMED.search(name):
            raise InvalidRequest(f"'{place}' has a name that this model's XML cannot hold.", place)
        own = (schema.get("properties") or {}).get(name, True)
        written = f"{literal(marks.key + name + marks.value)} {self._meaning(schema, name, own, place)}"
        rule = self._rule("parameter", f"{written} {literal(marks.end)}")
        return rule if required else f"{rule}?"

    def _meaning(self, schema: JsonSchema, name: str, own: Any, path: str) -> str:
        allowed = kinds(schema, name)
        if "string" not in allowed:
            return self.value(own, path)
        own = own if isinstance(own, dict) else {}
        if allowed == TEXT and not {"$ref", "anyOf", "oneOf", "allOf"} & set(own):
            return self._string_as_it_is(own, path)
        ways: Sequence[Any] = own.get("anyOf") or own.get("oneOf") or [own]
        rest = set(own) - PLAIN - {"anyOf", "oneOf"}
        for keyword in sorted(rest.union(*(set(way) - PLAIN for way in ways if isinstance(way, dict)))):
            self._unsupported(keyword, path, "of a parameter that may be a string or something else")
        return self._text({})

    def _string_as_it_is(self, schema: JsonSchema, path: str) -> str:
        for keyword in sorted(set(schema) - PLAIN - set(HELD)):
            self._unsupported(keyword, path, "this model writes strings as they are")
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if values and all(isinstance(value, str) and not {"<", "\0"} & set(value) for value in values):
            return f"({' | '.join(literal(value) for value in values)})"
        if values:
            self._unsupported("enum", path, "of texts with < or NUL")
        if known := FORMATS.get(schema.get("format", "")):
            return self._rule("format", known)
        if "format" in schema:
            self._unsupported("format", path, f"of formats, only {', '.join(FORMATS)} are")
        return self._text(schema, path)

    def _text(self, schema: JsonSchema, path: str = "") -> str:
        least, most = self._counts(schema, "minLength", "maxLength", STRING_CHARS, path)
        return times(PLAIN_LETTER if "maxLength" in schema else "letter", least, most)
