"""The filters of OpenAI's file search: comparisons of a file's attributes, joined by `and` and `or`. Pure functions."""

from typing import Annotated, Literal

from pydantic import Field

from app.errors import InvalidRequest
from app.messages import Strict
from app.shelves import Attributes

Scalar = Annotated[str, Field(max_length=512)] | bool | Annotated[float, Field(allow_inf_nan=False)]
MOST_DEPTH = 16


class Comparison(Strict):
    """One attribute against a value, or against several for `in` and `nin`."""

    type: Literal["eq", "ne", "gt", "gte", "lt", "lte", "in", "nin"]
    key: str = Field(max_length=64)
    value: Scalar | Annotated[list[Scalar], Field(max_length=1000)]


class Compound(Strict):
    """Several filters together."""

    type: Literal["and", "or"]
    filters: "list[Comparison | Compound]" = Field(max_length=100)


Filter = Comparison | Compound


def check(wanted: Filter, depth: int = 1) -> None:
    """Raise InvalidRequest for a filter that makes no sense."""
    if isinstance(wanted, Compound):
        if depth > MOST_DEPTH:
            raise InvalidRequest(f"'filters' is nested deeper than {MOST_DEPTH} levels.", "filters")
        for one in wanted.filters:
            check(one, depth + 1)
    elif isinstance(wanted.value, list) != (wanted.type in {"in", "nin"}):
        expected = "a list" if wanted.type in {"in", "nin"} else "one value"
        raise InvalidRequest(f"A filter of the type '{wanted.type}' compares with {expected}.", "filters")


def matches(wanted: Filter, attributes: Attributes) -> bool:
    """Whether attributes pass a filter. One that is not there equals nothing, and is neither more nor less."""
    if isinstance(wanted, Compound):
        passed = (matches(one, attributes) for one in wanted.filters)
        return all(passed) if wanted.type == "and" else any(passed)
    has, value = attributes.get(wanted.key), wanted.value
    if isinstance(value, list):
        return any(_same(has, one) for one in value) == (wanted.type == "in")
    if wanted.type in {"eq", "ne"}:
        return _same(has, value) == (wanted.type == "eq")
    return _ordered(wanted.type, has, value)


def _same(has: object, value: object) -> bool:
    """As JSON has it: true is not 1."""
    return isinstance(has, bool) == isinstance(value, bool) and has == value


def _ordered(kind: str, has: object, value: object) -> bool:
    """Numbers with numbers, text with text."""
    if isinstance(has, bool) or isinstance(value, bool):
        return False
    if isinstance(has, int | float) and isinstance(value, int | float):
        return _stands(kind, (has > value) - (has < value))
    return isinstance(has, str) and isinstance(value, str) and _stands(kind, (has > value) - (has < value))


def _stands(kind: str, order: int) -> bool:
    return {"gt": order > 0, "gte": order >= 0, "lt": order < 0, "lte": order <= 0}[kind]
