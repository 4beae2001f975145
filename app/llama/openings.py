"""Which tokens begin with which character, so that a grammar need not judge a whole vocabulary. Pure.

A grammar takes a token character by character. Where it refuses a character's own token, it refuses every token that
begins with it. So those of one character are judged first, some hundreds, and then only what begins with the allowed
ones: where a schema dictates a key or a comma, that is a few of a hundred thousand tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.llama.vocabulary import Tokens


class Openings(NamedTuple):
    """singles: the tokens of one character; opening: of each token of the vocabulary, the index of its first one's.

    A token without (control tokens, pieces of characters, characters that no token spells alone) has len(singles).
    """

    singles: Tokens
    opening: NDArray[np.intp]

    def behind(self, allowed: NDArray[np.bool_]) -> Tokens:
        """The tokens that may be allowed, where of each single it is known whether it is. [singles] → [some tokens]"""
        return np.flatnonzero(np.append(allowed, True)[self.opening]).astype(np.int32)


def openings(pieces: Sequence[bytes]) -> Openings:
    """pieces: the bytes of every token; of control tokens none."""
    heads = [_head(piece) for piece in pieces]
    alone = {piece: token for token, piece in enumerate(pieces) if piece and piece == heads[token]}
    places = {head: place for place, head in enumerate(alone)}
    opening = [places.get(head, len(places)) for head in heads]
    return Openings(np.array(list(alone.values()), np.int32), np.array(opening, np.intp))


def _head(piece: bytes) -> bytes:
    """The first character, in UTF-8; empty where the piece begins with less than one."""
    lead = piece[0] if piece else 0
    size = 1 if lead < 0x80 else 0 if lead < 0xC0 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    return piece[:size] if len(piece) >= size else b""
