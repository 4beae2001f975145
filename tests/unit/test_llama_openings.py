"""Which tokens a grammar must judge, once it has judged those of one character."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from app.llama.openings import openings


def test_what_begins_with_a_refused_character_is_not_judged():
    """What has no character of its own always is: control tokens, pieces of characters, characters never alone."""
    pieces = [b"a", b"ab", b"b", b"", "é".encode(), "éa".encode(), b"\xc3", b"\xa9", b"cd", "日".encode()]
    found = openings(pieces)
    assert [pieces[token].decode() for token in found.singles] == ["a", "b", "é", "日"]
    assert found.behind(np.array([False, True, False, False])).tolist() == [2, 3, 6, 7, 8]
    assert found.behind(np.array([True, False, True, False])).tolist() == [0, 1, 3, 4, 5, 6, 7, 8]
    assert found.behind(np.ones(4, bool)).tolist() == list(range(10))


@given(st.lists(st.binary(max_size=6) | st.text(max_size=3).map(str.encode), max_size=60), st.randoms())
def test_whatever_may_be_allowed_is_judged(pieces, random):
    """A token is left out only where the token of its first character is refused."""
    found = openings(pieces)
    allowed = np.array([random.random() < 0.5 for _ in found.singles], bool)
    judged = set(found.behind(allowed).tolist())
    refused = [pieces[token] for token, may in zip(found.singles.tolist(), allowed, strict=True) if not may]
    for token, piece in enumerate(pieces):
        if token not in judged:
            assert any(piece.startswith(single) for single in refused)
