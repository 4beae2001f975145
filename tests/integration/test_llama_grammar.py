"""Grammars of JSON Schemas, compiled by llama.cpp and drawn from with random logits."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.gguf_factory import random_model

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]

FORMATS = ("date", "time", "date-time", "uuid", "email", "ipv4", "ipv6", "duration", "hostname")
INTEGERS = ((0, 0), (-7, 3), (98, 1203), (-120, -9))
NUMBERS = ((0, 1), (-3, 2), (9, 101), (-20, -10), (5, 5))
OPEN = ((0, 1), (-1, 0), (-2, 5))

NODE = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}}}
SCHEMAS: list[Any] = [
    True,
    {"type": "object"},
    {"type": ["string", "null"], "maxLength": 4},
    {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}}, "required": ["b"]},
    {"properties": {"a": {"const": 'x"\\\n'}, "é{": {"enum": [1, "one", None, True]}}, "additionalProperties": False},
    {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "number"}},
    {"type": "object", "required": ["z"], "additionalProperties": {"type": "boolean"}},
    {"type": "object", "propertyNames": {"pattern": "^[a-c]{1,3}$"}, "minProperties": 1, "maxProperties": 2},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": False},
    {"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "boolean"}, "minItems": 3, "maxItems": 5},
    {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
    {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}]},
    {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "null"}}, "required": ["b"]}]},
    {"type": "string", "minLength": 3, "maxLength": 5},
    {"type": "string", "pattern": '^\\d{3}-[a-z]+(x|y"z)?$'},
    {"type": "string", "pattern": "^a?b\\\\c$"},
    {"type": "string", "pattern": "^[\\s\\S]\\S\\D\\W$"},
    {"properties": {"a": {"type": "null"}}, "required": ["b"]},
    {"type": "integer", "anyOf": [{"type": "string"}, {"maximum": 3}]},
    {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
    {"type": "integer", "maximum": -50534929683708103},
    {"type": "number", "minimum": -1e300, "maximum": 9007199254740991},
    *({"type": "string", "format": name} for name in FORMATS),
    *({"type": "integer", "minimum": low, "maximum": high} for low, high in INTEGERS),
    {"type": "integer", "exclusiveMinimum": 4, "maximum": 12},
    *({"type": "number", "minimum": low, "maximum": high} for low, high in NUMBERS),
    *({"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high} for low, high in OPEN),
    {"type": "number", "minimum": 0},
    {"type": "number", "exclusiveMaximum": 0},
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("grammar") / "random.gguf")


def drawn(model: Path, schemas: list[Any], template: str = "") -> list[Any]:
    """For each schema the texts that came out, or its refusal; with a template, what a function was called with."""
    given = json.dumps({"model": str(model), "schemas": schemas, "template": template})
    command = [sys.executable, "-m", "tests.grammar_child"]
    child = subprocess.run(command, input=given, text=True, capture_output=True, cwd=ROOT, timeout=120, check=False)
    assert child.returncode == 0, child.stderr[-2000:]
    return [json.loads(line) for line in child.stdout.splitlines()]


def check(schema: Any, texts: list[str | None]) -> int:
    """How many answers came to their end; all of them satisfy the schema."""
    whole = [text for text in texts if text is not None]
    for text in whole:
        jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator)
    return len(whole)


def test_what_comes_out_satisfies_the_schema(model: Path):
    """Of every keyword that is supported, whatever the model would rather say."""
    for schema, texts in zip(SCHEMAS, drawn(model, SCHEMAS), strict=True):
        assert isinstance(texts, list), texts
        assert check(schema, texts), f"none came to an end: {schema}"


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"type": "array", "items": {"uniqueItems": True}}, "schema.items.uniqueItems"),
        ({"properties": {"a": {"not": {}}}}, "schema.properties.a.not"),
        ({"type": "number", "minimum": 0.5}, "schema.minimum"),
        ({"type": "number", "minimum": 2e9}, "schema.minimum"),
        ({"type": "string", "format": "int32"}, "schema.format"),
        ({"minProperties": 1, "additionalProperties": False}, "schema.minProperties"),
        ({"type": "integer", "anyOf": [{"type": "string"}, {"enum": [1.5]}]}, "schema.anyOf[1]"),
        ({"type": "string", "pattern": "(?=a)b"}, "schema.pattern"),
        ({"$ref": "#/$defs/none"}, "schema.$ref"),
        ({"$ref": "https://example.org/schema"}, "schema.$ref"),
        ({"$ref": "#"}, "#.$ref"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "schema"),
        ({"enum": []}, "schema.enum"),
        ({"type": "date"}, "schema.type"),
        ({"type": "object", "properties": {"a": 3}}, "schema.properties.a"),
        ({"type": "string", "minLength": 99_999}, "schema.minLength"),
        ({"type": "array", "minItems": -1}, "schema.minItems"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_its_name(model: Path, schema: Any, param: str):
    """Rather than answered as if it had not been asked."""
    (refusal,) = drawn(model, [schema])
    assert refusal["param"] == param
    assert refusal["refused"]


VALUES = st.lists(st.one_of(st.text(max_size=4), st.integers(), st.none()), min_size=1, max_size=3)
KINDS = ("string", "integer", "number", "boolean", "null", "object", "array")


def between(kind: str, least: str, most: str, low: st.SearchStrategy[int], size: int) -> st.SearchStrategy[Any]:
    return st.builds(lambda at, more: {"type": kind, least: at, most: at + more}, low, st.integers(1, size))


LEAVES = st.one_of(
    st.just({}),
    st.sampled_from([{"type": kind} for kind in KINDS]),
    st.builds(lambda values: {"enum": values}, VALUES),
    between("integer", "minimum", "maximum", st.integers(-999, 999), 9999),
    between("number", "minimum", "exclusiveMaximum", st.integers(-99, 99), 999),
    between("string", "minLength", "maxLength", st.integers(0, 4), 90),
)
SCHEMA = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(
            lambda properties, more: {
                "type": "object", "properties": properties, "required": sorted(properties)[::2], **more,
            },
            st.dictionaries(st.text(max_size=3), inner, max_size=3),
            st.sampled_from([{}, {"additionalProperties": False}, {"additionalProperties": {"type": "null"}}]),
        ),
        st.builds(lambda items: {"type": "array", "items": items, "maxItems": 3}, inner),
        st.builds(lambda ways: {"anyOf": ways}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SCHEMA, min_size=10, max_size=10))
def test_any_supported_schema_makes_a_grammar_that_holds(model: Path, schemas: list[Any]):
    """llama.cpp compiles it, and what comes to its end satisfies it."""
    for schema, texts in zip(schemas, drawn(model, schemas), strict=True):
        if isinstance(texts, list):
            check(schema, texts)
        else:
            assert "no value at all" in texts["refused"] or "surrogate" in texts["refused"]


TEMPLATES = {
    "hermes": "{{ tools }}<tool_call>",
    "mistral": "{{ tools }}[TOOL_CALLS]",
    "devstral": "{{ tools }}[TOOL_CALLS][ARGS]",
    "llama": '{{ tools }}<|python_tag|>"parameters": x',
    "coder": "{{ tools }}<tool_call><function=x><parameter=y>",
    "glm": "{{ tools }}<tool_call><arg_key><arg_value>",
}
PARAMETERS: list[Any] = [
    {},
    {"type": "object", "properties": {}},
    {"type": "object", "properties": {"a": {"type": "string", "maxLength": 30}}, "required": ["a"]},
    {"properties": {"a": {"type": "integer", "minimum": 3}, "b": {"type": "boolean"}}, "required": ["b"]},
    {"properties": {"a": {"enum": ["x", "y\nz"]}, "b": {"const": "5"}}, "required": ["a", "b"]},
    {"properties": {"a": {"type": "string", "minLength": 2, "maxLength": 4}}},
    {"properties": {"b": {"type": "string", "format": "time"}}, "required": ["b"]},
    {"properties": {"a": {"type": "array", "items": {"type": "string", "maxLength": 2}, "maxItems": 2}}},
    {"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "b": {"type": ["integer", "null"]}},
     "required": ["a", "b"]},
    {"properties": {"a": {"$ref": "#/$defs/o"}}, "required": ["a"],
     "$defs": {"o": {"properties": {"k": {"const": "</parameter>"}}, "required": ["k"]}}},
    {"properties": {"a": {"enum": [1, None, True]}}, "required": ["a"], "additionalProperties": True},
]  # fmt: skip
OBJECTS = st.builds(
    lambda properties, more: {
        "type": "object", "properties": properties, "required": sorted(properties)[::2], **more,
    },
    st.dictionaries(st.text(max_size=3), SCHEMA, max_size=3),
    st.sampled_from([{}, {"additionalProperties": False}, {"additionalProperties": True}]),
)  # fmt: skip


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_call_that_is_forced_satisfies_its_functions_schema(model: Path, family: str):
    """In the syntax of every family, read back as any answer is."""
    ended = 0
    for schema, calls in zip(PARAMETERS, drawn(model, PARAMETERS, TEMPLATES[family]), strict=True):
        assert isinstance(calls, list), calls
        whole = [call for call in calls if call is not None]
        ended += bool(whole)  # text of random letters seldom ends
        for call in whole:
            jsonschema.validate(call, {"type": "object"} | schema, cls=jsonschema.Draft202012Validator)
    assert ended >= len(PARAMETERS) - 2


@pytest.mark.parametrize("family", ["hermes", "devstral", "coder", "glm"])
# two, because the first one is always the simplest there is: schemas without a property
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schemas=st.lists(OBJECTS, min_size=8, max_size=8))
def test_any_functions_schema_makes_calls_that_hold(model: Path, family: str, schemas: list[Any]):
    """llama.cpp compiles it; what comes to its end is one call, and satisfies the schema, or it was refused by name."""
    for schema, calls in zip(schemas, drawn(model, schemas, TEMPLATES[family]), strict=True):
        if isinstance(calls, list):
            for call in (call for call in calls if call is not None):
                jsonschema.validate(call, schema, cls=jsonschema.Draft202012Validator)
        else:
            assert calls["refused"]


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"properties": {"a": {"type": "string", "pattern": "^a$"}}}, "properties.a.pattern"),
        ({"properties": {"a<b": {"type": "string"}}}, "properties.a<b"),
        ({"properties": {" a": {"type": "string"}}}, "properties. a"),
        ({"properties": {"\0": {"type": "string"}}}, "properties.\0"),
        ({"properties": {"a": {"enum": ["x", "\0"]}}}, "properties.a.enum"),
        ({"properties": {"a": {"enum": ["x", 1]}}}, "properties.a.enum"),
        ({"anyOf": [{"properties": {}}]}, "anyOf"),
        ({"minProperties": 1}, "minProperties"),
        ({"additionalProperties": {"type": "integer"}}, "additionalProperties"),
    ],
)
def test_what_xml_cannot_hold_is_refused_by_its_name(model: Path, schema: Any, param: str):
    """Of strict functions. Of others it is let go."""
    (refusal,) = drawn(model, [schema], TEMPLATES["coder"])
    assert refusal["param"] == f"tools[0].function.parameters.{param}"
