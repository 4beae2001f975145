"""JSON Schemas that no grammar can hold: what is refused, and what is let go. What comes out is tested on llama.cpp."""

import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.llama.expressions import times
from app.llama.grammar import ANNOTATIONS, HANDLED, from_schema

KEYWORDS = sorted({*HANDLED, *ANNOTATIONS, "not", "if", "uniqueItems", "multipleOf", "patternProperties"})
VALUES = st.one_of(
    st.sampled_from([None, True, -1, 1.5, 10**30, 1e300, "string", "object", "#", "#/$defs", "^a", "(", [], {}]),
    st.lists(st.sampled_from(["string", "object", "a", 1, None, {}]), max_size=2),
)
SCHEMAS = st.recursive(
    st.dictionaries(st.sampled_from(KEYWORDS), VALUES, max_size=4),
    lambda inner: st.dictionaries(
        st.sampled_from(KEYWORDS),
        st.one_of(VALUES, inner, st.lists(inner, max_size=2), st.builds(lambda one: {"a": one}, inner)),
        max_size=4,
    ),
    max_leaves=6,
)  # fmt: skip


@given(SCHEMAS)
def test_any_nonsense_is_a_grammar_or_a_refusal(schema: dict[str, Any]):
    """Never another error; and without strictness what cannot be held is let go."""
    with suppress(InvalidRequest):
        assert from_schema(schema, strict=True, param="p").startswith("root ::= ")
    assert from_schema(schema, strict=False, param="p").startswith("root ::= ")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "not": {}},
        {"type": "object", "required": ["a"], "additionalProperties": False},
        {"type": "object", "properties": {"a": {"$ref": "#/components/schemas/a"}}},
    ],
)
def test_what_is_let_go_is_still_of_its_type(schema: dict[str, Any]):
    """The arguments of a function are an object, whatever became of the rest."""
    with pytest.raises(InvalidRequest):
        from_schema(schema, strict=True, param="p")
    assert from_schema(schema, strict=False, param="p").startswith(('root ::= "{"', 'root ::= ("{"'))


@pytest.mark.parametrize(("least", "most"), [(0, 200), (3, 131), (64, 16_384), (100, 300), (0, 191), (0, 192)])
def test_a_long_repetition_is_as_long_as_it_may_be(least: int, most: int):
    """Blocks and a remainder: together the most, without a gap between, and never below the least."""
    found = [(int(low), int(high or low)) for low, high in re.findall(r"\{(\d+)(?:,(\d+))?\}", times("x", least, most))]
    if least:
        (block, _), (blocks, _), (rest, _), *found = found
        assert block * blocks + rest == least
    (block, _), (_, blocks), (_, rest) = found
    assert block * blocks + rest == most - least
    assert rest >= block - 1


@pytest.mark.parametrize("schema", [{"enum": [float("nan")]}, {"const": "\ud800"}])
def test_what_json_does_not_have_is_refused(schema: dict[str, Any]):
    """Half a character or no number would come back in an answer."""
    with pytest.raises(InvalidRequest, match="JSON"):
        from_schema(schema, strict=False, param="p")


def test_a_schema_has_its_limits():
    """In depth and in size; the message says which."""
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"type": "array", "items": deep}
    with pytest.raises(InvalidRequest, match="64 levels"):
        from_schema(deep, strict=True, param="p")
    wide = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(2000)}}
    with pytest.raises(InvalidRequest, match="4000 rules"):
        from_schema(wide, strict=True, param="p")
    again: dict[str, Any] = {"d0": {"type": "null"}}
    for number in range(25):  # 2 to the 25th parts, in few letters
        again[f"d{number + 1}"] = {"anyOf": [{"$ref": f"#/$defs/d{number}", "type": "null"}] * 2}
    for strict in (True, False):
        with pytest.raises(InvalidRequest, match="20,000 parts"):
            from_schema({"$defs": again, "$ref": "#/$defs/d25"}, strict=strict, param="p")


@pytest.mark.parametrize("pattern", ["^((a*)*)*$", "^(a+)+b$", "^(a?){9}$", "^((a{0,64}){0,64}){0,64}$"])
def test_a_pattern_that_can_match_in_too_many_ways_is_refused(pattern: str):
    """llama.cpp follows all of them at once: three stars within each other took minutes a token."""
    with pytest.raises(InvalidRequest, match="too many ways"):
        from_schema({"type": "string", "pattern": pattern}, strict=True, param="p")
    assert from_schema({"type": "string", "pattern": "^(ab?)+(-[a-z]+)*$"}, strict=True, param="p")
