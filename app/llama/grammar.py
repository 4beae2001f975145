"""JSON Schema to GBNF, the grammar that llama.cpp samples under. Pure.

What comes out is a subset of what the schema allows, never more: properties come in the order of the schema, numbers
have at most 16 digits, strings 16,384 characters, lists 1,024 items unless the schema says less, so that no answer is
endless. A keyword that a grammar cannot hold is refused by its name; where `strict` is off it is let go instead, and
the answer is looser than the schema.

https://json-schema.org/draft/2020-12 · https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from app.errors import InvalidRequest
from app.llama.expressions import (
    ANY_NUMBER,
    CHAR,
    EMPTY,
    FORMATS,
    PLAIN,
    SPACE,
    decimals,
    integers,
    separated,
    times,
)
from app.llama.patterns import PatternError, character_class, literal, pattern
from app.messages import JsonSchema

STRING_CHARS, ARRAY_ITEMS, KEYS = 16_384, 1_024, 64
MAX_RULES, MAX_DEPTH, MAX_CHARS = 4_000, 64, 400_000
MAX_PARTS = 20_000  # of a schema, counted where they are used: references may double with every level

MOST_INTEGER, MOST_NUMBER = 10**18, 10**9  # as bounds; a float would round 999,999,999.9999999999 up to the bound

TYPES = ("object", "array", "string", "integer", "number", "boolean", "null")
ANNOTATIONS = frozenset({
    "$schema", "$id", "$comment", "$anchor", "$defs", "definitions", "title", "description", "default", "examples",
    "deprecated", "readOnly", "writeOnly", "contentEncoding", "contentMediaType", "strict",
})  # fmt: skip
OF_TYPE = {
    "object": ("properties", "required", "additionalProperties", "propertyNames", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
SHAPES: dict[str, type | tuple[type, ...]] = {
    "type": (str, list), "enum": list, "anyOf": list, "oneOf": list, "allOf": list, "properties": dict,
    "required": list, "prefixItems": list, "pattern": str, "format": str,
}  # fmt: skip
HANDLED = frozenset({"type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "nullable"}).union(*OF_TYPE.values())


class NothingFitsError(InvalidRequest):
    """A schema that no value satisfies. One way of several may be so."""


def json_object(param: str) -> str:
    """The grammar of any JSON object."""
    return from_schema({"type": "object"}, strict=True, param=param)


def from_schema(schema: JsonSchema, *, strict: bool, param: str) -> str:
    """The grammar of a schema, its root called `root`. param: what clients call the schema, for errors.

    Raises InvalidRequest naming the place: a malformed schema, one that nothing satisfies, one that is too large, or,
    where strict, a keyword that is not supported.
    """
    writer = Writer(schema, strict=strict, param=param)
    root = writer.value(schema, param)
    return "\n".join([f"root ::= {root}", *Writer.common(), *writer.rules()])


class Writer:
    """Turns the parts of one schema into rules, whose names begin with prefix."""

    def __init__(self, schema: JsonSchema, *, strict: bool, param: str, prefix: str = "") -> None:
        try:
            json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"'{param}' holds what JSON cannot ({type(error).__name__}).", param) from error
        self._schema, self._strict, self._param, self._prefix = schema, strict, param, prefix
        self._rules: dict[str, str] = {}
        self._refs: dict[str, str] = {}  # reference to its rule
        self._entered: list[str] = []  # references since the last character that was written
        self._depth = 0
        self._parts = 0

    @staticmethod
    def common() -> list[str]:
        """The rules that all schemas use."""
        return [SPACE, CHAR]

    def rules(self) -> list[str]:
        """The rules that were made. Raises InvalidRequest where they are too many."""
        found = [f"{name} ::= {rule}" for name, rule in self._rules.items()]
        size = sum(map(len, found))
        if size > MAX_CHARS:
            message = f"The schema makes a grammar of {size:,} characters, the most is {MAX_CHARS:,}. Simplify it."
            raise InvalidRequest(message, self._param)
        return found

    def value(self, schema: Any, path: str) -> str:
        """The expression of a schema."""
        if schema is True:
            schema = {}
        if not isinstance(schema, dict):
            raise InvalidRequest(f"'{path}' must be a schema, an object, and is {json.dumps(schema)[:60]}.", path)
        self._depth, self._parts = self._depth + 1, self._parts + 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"The schema has more than {MAX_PARTS:,} parts. Simplify it.", self._param)
        if self._depth > MAX_DEPTH:
            raise InvalidRequest(f"The schema is nested deeper than {MAX_DEPTH} levels.", path)
        try:
            return self._value(schema, path)
        except InvalidRequest:
            if self._strict or len(self._rules) >= MAX_RULES or self._parts > MAX_PARTS:
                raise
            return self._map({}, path) if schema.get("type") == "object" else self._any()
        finally:
            self._depth -= 1

    def _value(self, schema: JsonSchema, path: str) -> str:
        self._check_keywords(schema, path)
        essence = {key: given for key, given in schema.items() if key not in ANNOTATIONS}
        if set(essence) == {"$ref"}:
            return self._reference(essence["$ref"], path)
        if "$ref" in essence:
            target = self._target(essence.pop("$ref"), path)
            return self.value(self._merged([target, essence], path), path)
        if "allOf" in essence:
            parts = [
                self._resolved(part, f"{path}.allOf[{at}]") for at, part in enumerate(_list(essence, "allOf", path))
            ]
            del essence["allOf"]
            return self.value(self._merged([*parts, essence], path), path)
        for kind in ("anyOf", "oneOf"):
            if kind in essence:
                parts = _list(essence, kind, path)
                del essence[kind]
                return self._choice(parts, essence, f"{path}.{kind}")
        if "const" in essence or "enum" in essence:
            return self._constants(essence, path)
        types = essence.get("type", [kind for kind in TYPES if kind != "integer"])
        if "type" not in essence:
            types = [kind for kind in OF_TYPE if set(OF_TYPE[kind]) & set(essence)][:1] or types
        types = [types] if isinstance(types, str) else types
        if essence.get("nullable") and "null" not in types:
            types = [*types, "null"]
        if not isinstance(types, list) or not types or any(kind not in TYPES for kind in types):
            raise InvalidRequest(
                f"'{path}.type' is {json.dumps(types)[:80]}; it must be of {', '.join(TYPES)}.", f"{path}.type"
            )
        writers: dict[str, Callable[[JsonSchema, str], str]] = {
            "object": self._object,
            "array": self._array,
            "string": self._string,
            "integer": self._integer,
            "number": self._number,
            "boolean": lambda *_: '("true" | "false")',
            "null": lambda *_: '"null"',
        }
        return "(" + " | ".join(writers[kind](essence, path) for kind in types) + ")"

    def _choice(self, parts: Sequence[Any], also: JsonSchema, path: str) -> str:
        """One of some schemas, without those that nothing satisfies. also: what all of them ask for as well."""
        choices: dict[str, None] = {}
        impossible: NothingFitsError | None = None
        for at, part in enumerate(parts):
            try:
                both = self._merged([self._resolved(part, path), also], path) if also else part
                choices[self.value(both, f"{path}[{at}]")] = None
            except NothingFitsError as error:
                impossible = error
        if impossible and not choices:
            raise impossible
        return f"({' | '.join(choices)})"

    def _check_keywords(self, schema: JsonSchema, path: str) -> None:
        for keyword, given in schema.items():
            if not isinstance(given, SHAPES.get(keyword, object)):
                message = f"'{path}.{keyword}' cannot be {json.dumps(given)[:60]}."
                raise InvalidRequest(message, f"{path}.{keyword}")
            if keyword not in HANDLED and keyword not in ANNOTATIONS:
                self._unsupported(keyword, path)

    def _unsupported(self, keyword: str, path: str, why: str = "") -> None:
        if self._strict:
            reason = f" ({why})" if why else ""
            message = (
                f"'{path}.{keyword}' cannot be enforced{reason}. Leave it out; docs/structured-output.md has what can."
            )
            raise InvalidRequest(message, f"{path}.{keyword}")

    # References and combinations

    def _target(self, ref: Any, path: str) -> Any:
        if not isinstance(ref, str) or not ref.startswith("#"):
            raise InvalidRequest(f"'{path}.$ref' must point into the schema itself, like #/$defs/name.", f"{path}.$ref")
        found: Any = self._schema
        for escaped in filter(None, ref[1:].split("/")):
            step = escaped.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            elif isinstance(found, dict) and step in found:
                found = found[step]
            else:
                raise InvalidRequest(f"'{path}.$ref' points at '{ref}', which is not there.", f"{path}.$ref")
        return found

    def _reference(self, ref: Any, path: str) -> str:
        target = self._target(ref, path)
        if ref in self._entered:
            raise InvalidRequest(f"'{path}.$ref' refers to itself without end.", f"{path}.$ref")
        if ref not in self._refs:
            self._refs[ref] = self._reserve("ref")
            self._entered.append(ref)
            try:
                self._rules[self._refs[ref]] = self.value(target, ref)
            finally:
                self._entered.pop()
        return self._refs[ref]

    def _resolved(self, part: Any, path: str) -> Any:
        seen: list[Any] = []
        while isinstance(part, dict) and set(part) - ANNOTATIONS == {"$ref"}:
            if part["$ref"] in seen:
                raise InvalidRequest(f"'{path}.$ref' refers to itself without end.", f"{path}.$ref")
            seen.append(part["$ref"])
            part = self._target(part["$ref"], path)
        return part

    def _merged(self, parts: Sequence[Any], path: str) -> JsonSchema:
        """One schema that asks for what all of them ask."""
        whole: JsonSchema = {}
        for part in parts:
            if not isinstance(part, dict | bool):
                raise InvalidRequest(f"'{path}' holds {json.dumps(part)[:60]} where a schema belongs.", path)
            for keyword, given in part.items() if isinstance(part, dict) else ():
                if keyword in ANNOTATIONS:
                    continue
                whole[keyword] = self._both(keyword, whole[keyword], given, path) if keyword in whole else given
        return whole

    def _both(self, keyword: str, first: Any, second: Any, path: str) -> Any:  # noqa: PLR0911 - one case a keyword
        if first == second:
            return first
        try:
            if keyword == "properties":
                shared = {key: {"allOf": [first[key], second[key]]} for key in first if key in second}
                return first | second | shared
            if keyword == "required":
                return list(dict.fromkeys([*first, *second]))
            if keyword in {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}:
                return max(first, second)
            if keyword in {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}:
                return min(first, second)
            if keyword == "enum":
                return [value for value in first if value in second]
            if keyword == "type":
                return _common_types(first, second, path)
            if keyword == "additionalProperties":
                return second if first is True else first
        except TypeError:
            pass
        message = f"'{path}' combines two different '{keyword}', which is not supported. Write it as one schema."
        raise InvalidRequest(message, f"{path}.{keyword}")

    def _constants(self, schema: JsonSchema, path: str) -> str:
        values = [schema["const"]] if "const" in schema else _list(schema, "enum", path)
        kinds = schema.get("type")
        if "const" in schema and "enum" in schema:
            values = [value for value in values if value in schema["enum"]]
        if kinds is not None:
            wanted = [kinds] if isinstance(kinds, str) else kinds
            values = [value for value in values if _is_of(value, wanted)]
        if schema.get("nullable") and None not in values:
            values = [*values, None]
        if not values:
            raise NothingFitsError(f"'{path}' allows no value at all.", path)
        for keyword in set(schema) - {"const", "enum", "type", "nullable"}:
            self._unsupported(keyword, path, "beside enum or const")
        return "(" + " | ".join(dict.fromkeys(literal(_json(value, path)) for value in values)) + ")"

    # The types

    def _object(self, schema: JsonSchema, path: str) -> str:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        if not isinstance(properties, dict) or not _are_texts(properties):
            raise InvalidRequest(f"'{path}.properties' must be an object of schemas.", f"{path}.properties")
        if not isinstance(required, list) or not _are_texts(required):
            raise InvalidRequest(f"'{path}.required' must be a list of names.", f"{path}.required")
        entered, self._entered = self._entered, []
        try:
            more = schema.get("additionalProperties", not properties)
            missing = [name for name in required if name not in properties]
            if missing and schema.get("additionalProperties") is False:
                message = f"'{path}.required' names '{missing[0]}', which no property allows."
                raise NothingFitsError(message, f"{path}.required")
            known = dict(properties) | dict.fromkeys(missing, schema.get("additionalProperties", True))
            if not known:
                return self._map(schema, path)
            for keyword in ("minProperties", "maxProperties", "propertyNames"):
                if keyword in schema and not _says_nothing(keyword, schema[keyword]):
                    self._unsupported(keyword, path, "beside properties")
            return self._fields(known, required, more if "additionalProperties" in schema else False, path)
        finally:
            self._entered = entered

    def _fields(self, known: Mapping[str, Any], required: Sequence[str], more: Any, path: str) -> str:
        """Each field by a rule for when it is the first one that is written, and one for when others were before."""
        tail = ""
        if more is not False:
            pair = self._rule(
                "pair", f'{self._other_key(known)} ":" space {self.value(more, f"{path}.additionalProperties")}'
            )
            tail = f'("," space {pair}){{0,{KEYS}}}'
            first = self._rule("first", f"({pair} {tail})?")
        else:
            first = ""
        rest = self._rule("rest", tail) if tail else ""
        for name, schema in reversed(list(known.items())):
            field = f'{literal(_json(name, path))} ":" space {self.value(schema, f"{path}.properties.{name}")} space'
            pair = self._rule("field", field)
            if name in required:
                first = self._rule("first", f"{pair} {rest}")
                rest = self._rule("rest", f'"," space {pair} {rest}')
            else:
                first = self._rule("first", f"({pair} {rest} | {first or EMPTY})")
                rest = self._rule("rest", f'("," space {pair})? {rest}')
        return f'"{{" space {first} "}}"'

    def _map(self, schema: JsonSchema, path: str) -> str:
        more = schema.get("additionalProperties", True)
        least, most = self._counts(schema, "minProperties", "maxProperties", KEYS, path)
        if more is False and least:
            raise NothingFitsError(f"'{path}.minProperties' is {least}, but there are none.", f"{path}.minProperties")
        if more is False or most == 0:
            return '"{" space "}"'
        names = self._resolved(schema.get("propertyNames", True), path)
        key = self._string({}, path) if names is True else self._name(names, f"{path}.propertyNames")
        value = self._any() if more is True else self.value(more, f"{path}.additionalProperties")
        pair = self._rule("pair", f'{key} space ":" space {value} space')
        return f'"{{" space {separated(pair, least, most)} "}}"'

    def _name(self, schema: Any, path: str) -> str:
        if not isinstance(schema, dict) or schema.get("type", "string") != "string":
            raise InvalidRequest(f"'{path}' must be a schema of strings.", path)
        return self.value({"type": "string"} | schema, path)

    def _any(self) -> str:
        """Any JSON value."""
        if "any" not in self._refs:
            self._refs["any"] = name = self._reserve("any")
            self._rules[name] = self._value({}, "any")
        return self._refs["any"]

    def _other_key(self, known: Iterable[str]) -> str:
        """A string that is none of these: every letter leaves them, or goes on along one of them."""

        def node(rest: Sequence[str]) -> str:
            letters = sorted({name[0] for name in rest if name})
            ways = [
                f"{literal(letter)} {node([name[1:] for name in rest if name[:1] == letter])}" for letter in letters
            ]
            leaving = character_class(letters, negated=True) if letters else PLAIN
            ways.append(f"{leaving} {PLAIN}{{0,60}}")
            return f"({' | '.join(ways)})" + ("" if "" in rest else "?")

        return self._rule("key", f'"\\"" {node([name for name in known if name.isprintable()])} "\\"" space')

    def _array(self, schema: JsonSchema, path: str) -> str:
        entered, self._entered = self._entered, []
        try:
            first = schema.get("prefixItems", [])
            items = schema.get("items", True)
            if isinstance(items, list):  # as before draft 2020-12
                first, items = items, schema.get("additionalItems", True)
            least, most = self._counts(schema, "minItems", "maxItems", ARRAY_ITEMS, path)
            if first and most < len(first):
                first = first[:most]
            fixed = [f"{self.value(item, f'{path}.prefixItems[{at}]')} space" for at, item in enumerate(first)]
            if items is False:
                most = min(most, len(fixed))
                if least > most:
                    raise InvalidRequest(
                        f"'{path}.minItems' is {least}, but there are only {most} items.", f"{path}.minItems"
                    )
            if not fixed:
                item = (
                    self._any() if items is True else self.value(items, f"{path}.items") if items is not False else '""'
                )
                name = self._rule("item", f"{item} space")
                return f'"[" space {separated(name, least, most)} "]"'
            listed = ' "," space '.join(fixed)  # all of them, which any minItems allows
            if most > len(fixed):
                item = self._any() if items is True else self.value(items, f"{path}.items")
                name = self._rule("item", f"{item} space")
                listed += " " + times(f'("," space {name})', max(0, least - len(fixed)), most - len(fixed))
            return f'"[" space {listed} "]"'
        finally:
            self._entered = entered

    def _string(self, schema: JsonSchema, path: str) -> str:
        limited = "minLength" in schema or "maxLength" in schema
        least, most = self._counts(schema, "minLength", "maxLength", STRING_CHARS, path)
        if "pattern" in schema:
            try:
                inner = pattern(schema["pattern"], self._rule)
            except PatternError as error:
                if self._strict:
                    message = f"'{path}.pattern' cannot be enforced: {error}."
                    raise InvalidRequest(message, f"{path}.pattern") from error
            else:
                if limited:
                    self._unsupported("minLength" if "minLength" in schema else "maxLength", path, "beside pattern")
                return f'"\\"" {inner} "\\""'
        known = FORMATS.get(schema.get("format", ""))
        if "format" in schema and not known:
            self._unsupported("format", path, f"of formats, only {', '.join(FORMATS)} are")
        if known:
            if limited:
                self._unsupported("minLength" if "minLength" in schema else "maxLength", path, "beside format")
            return f'"\\"" {self._rule("format", known)} "\\""'
        return f'"\\"" {times("char", least, most)} "\\""'

    def _integer(self, schema: JsonSchema, path: str) -> str:
        least, most = self._bounds(schema, path, MOST_INTEGER)
        low = least[0] + least[1] if least else None
        high = most[0] - most[1] if most else None
        if low is not None and high is not None and low > high:
            raise NothingFitsError(f"'{path}' allows no integer: {low} is above {high}.", path)
        return self._rule("integer", integers(low, high))

    def _number(self, schema: JsonSchema, path: str) -> str:
        least, most = self._bounds(schema, path, MOST_NUMBER)
        if least is None and most is None:
            return self._rule("number", ANY_NUMBER)
        low, high = (least[0] if least else None), (most[0] if most else None)
        if (
            low is not None
            and high is not None
            and (low > high or (low == high and ((least and least[1]) or (most and most[1]))))
        ):
            raise NothingFitsError(f"'{path}' allows no number between {low} and {high}.", path)
        return self._rule(
            "number", decimals(low, high, open_low=bool(least and least[1]), open_high=bool(most and most[1]))
        )

    def _bounds(
        self, schema: JsonSchema, path: str, limit: int
    ) -> tuple[tuple[int, int] | None, tuple[int, int] | None]:
        """(bound, 1 if it is excluded) at either end. A bound that is no whole number is none that digits can tell.

        One that is farther out than the limit is drawn in to it.
        """
        found: list[tuple[int, int] | None] = []
        for keyword, other, choose in (
            ("minimum", "exclusiveMinimum", max),
            ("maximum", "exclusiveMaximum", min),
        ):
            given = []
            for name, excluded in ((keyword, 0), (other, 1)):
                bound = schema.get(name)
                if bound is None or (isinstance(bound, bool) and name == other):  # true and false: draft 4
                    continue
                if isinstance(bound, bool) or not isinstance(bound, int | float) or math.isnan(bound):
                    raise InvalidRequest(
                        f"'{path}.{name}' must be a number, and is {json.dumps(bound)[:60]}.", f"{path}.{name}"
                    )
                outwards = -1 if choose is max else 1
                if bound * outwards > limit:
                    bound = limit * outwards
                if abs(bound) > limit or bound != int(bound):
                    self._unsupported(name, path, f"only whole numbers up to {limit:,} are")
                    continue
                draft4 = name == keyword and schema.get(other) is True
                given.append((int(bound), 1 if draft4 else excluded))
            sign = 1 if choose is max else -1
            found.append(max(given, key=lambda one: (sign * one[0], one[1])) if given else None)
        return found[0], found[1]

    def _counts(self, schema: JsonSchema, low: str, high: str, limit: int, path: str) -> tuple[int, int]:
        least, most = schema.get(low, 0), schema.get(high, limit)
        for keyword, count in ((low, least), (high, most)):
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise InvalidRequest(
                    f"'{path}.{keyword}' must be a count, and is {json.dumps(count)[:60]}.", f"{path}.{keyword}"
                )
        if least > limit:
            raise InvalidRequest(f"'{path}.{low}' is {least}, the most is {limit}.", f"{path}.{low}")
        if least > most:
            raise InvalidRequest(f"'{path}.{low}' is {least}, above '{high}', {most}.", f"{path}.{low}")
        return least, min(most, limit)

    # Rules

    def _reserve(self, kind: str) -> str:
        if len(self._rules) >= MAX_RULES:
            raise InvalidRequest(
                f"The schema needs more than {MAX_RULES} rules of a grammar. Simplify it.", self._param
            )
        name = f"{self._prefix}{kind}-{len(self._rules)}"
        self._rules[name] = ""
        return name

    def _rule(self, kind: str, expression: str) -> str:
        name = self._reserve(kind)
        self._rules[name] = expression
        return name


def _list(schema: JsonSchema, keyword: str, path: str) -> list[Any]:
    found = schema[keyword]
    if not isinstance(found, list) or not found:
        raise InvalidRequest(f"'{path}.{keyword}' must be a list with at least one entry.", f"{path}.{keyword}")
    return found


def _json(value: Any, path: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise InvalidRequest(f"'{path}' holds NaN or infinity, which JSON does not have.", path) from error


def _is_of(value: Any, kinds: Sequence[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in kinds
    if isinstance(value, int | float):
        return "number" in kinds or ("integer" in kinds and float(value).is_integer())
    names = {str: "string", list: "array", dict: "object", type(None): "null"}
    return names[type(value)] in kinds


def _common_types(first: Any, second: Any, path: str) -> list[str]:
    first, second = ([one] if isinstance(one, str) else one for one in (first, second))
    both = [kind for kind in first if kind in second]
    if not both and {"integer", "number"} <= {*first, *second}:
        both = ["integer"]
    if not both:
        raise NothingFitsError(f"'{path}' allows no value at all.", path)
    return both


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _says_nothing(keyword: str, given: Any) -> bool:
    return given in (True, {}, {"type": "string"}) if keyword == "propertyNames" else given == 0
