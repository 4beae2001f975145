"""JSON as it comes, held against Python's own parser."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.llama.json_scan import DEPTH, JsonScan, MalformedError

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)


def scanned(text: str) -> str | None:
    """The value at the beginning of a text; None where there is none, or its end was not reached."""
    scan = JsonScan()
    for at, char in enumerate(text):
        try:
            mine = scan.push(char)
        except MalformedError:
            return None
        if scan.done:
            return text[: at + mine]
    return None


@given(JSON, st.booleans(), st.sampled_from((None, 1)), st.sampled_from((",", "\n", "}", '"', "[")))
def test_a_value_ends_where_it_ends(value: object, ascii_only: bool, indent: int | None, behind: str):
    """Whatever stands behind it."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    assert scanned(text + behind + "x") == text


@settings(max_examples=500)
@given(st.text(alphabet='{}[]",: \\u0019afn.eE+-truls\n', max_size=12))
def test_what_python_takes_is_taken_and_nothing_else(text: str):
    """Malformed text is never taken for a value."""
    try:
        json.loads(text, parse_constant=lambda _: 1 / 0)
    except (ValueError, ZeroDivisionError):
        assert scanned(f"[{text}]") is None or json.loads(scanned(f"[{text}]") or "") is not None
    else:
        assert scanned(f"{text.strip()} ") == text.strip()


MALFORMED = ("[01", "[1.e", "[-]", "[+", "[.", "[1e]", '"\\x', '"\\u12g', '"\t', "nul ", "[1,]", "{,", '{"a" 1', "{1",
             "[1}", "N", "I", "'", '{"a": 1,}')  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_no_json_is_malformed_at_the_first_character_that_cannot_be(text: str):
    """And not before: the last one here."""
    scan = JsonScan()
    *good, bad = text
    assert all(scan.push(char) for char in good)
    with pytest.raises(MalformedError):
        scan.push(bad)


def test_nesting_has_an_end():
    """So that nobody who parses it runs out of stack."""
    assert scanned("[" * DEPTH + "]" * DEPTH)
    assert scanned("[" * (DEPTH + 1) + "]" * (DEPTH + 1)) is None
