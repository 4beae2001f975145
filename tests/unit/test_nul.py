"""NUL characters through a database that refuses them."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from app.nul import hide, hide_json, show, show_json

awkward = st.text(st.sampled_from('\0\x10\\0Du"a\n🎈'), max_size=20)


@settings(max_examples=200, deadline=None)
@given(awkward)
def test_text_comes_back_to_the_letter(text: str) -> None:
    """Whatever mixture of NUL, DLE and what they turn into: what was hidden is shown, and holds no NUL."""
    assert "\0" not in hide(text)
    assert show(hide(text)) == text


@settings(max_examples=200, deadline=None)
@given(awkward)
def test_json_comes_back_to_the_letter(text: str) -> None:
    """The same inside JSON, where a backslash before an escape must not hide it."""
    hidden = hide_json(json.dumps({text: [text]}))
    assert "\0" not in next(iter(json.loads(hidden)))
    assert json.loads(show_json(json.dumps(json.loads(hidden)))) == {text: [text]}
