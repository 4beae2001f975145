"""Which sequences hold which tokens, over a cache that is a dictionary."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.llama.prefix import WORTH_COPYING, Holding, PrefixCache
from app.llama.stash import CellBytes, common_prefix

OWNER = (None, "default")


class Table:
    """The KV cache as the prefix cache may use it: the tokens of each sequence. window: a cache that lost the rest.

    copied: sequences that were put back from copies.
    """

    def __init__(self, window: int = 10**6, room: int = 10**6, *, shared: bool = True) -> None:
        self.tokens: dict[int, list[int]] = {}
        self._window, self.room, self.shared = window, room, shared
        self.copied = 0

    def share(self, source: int, target: int, length: int) -> bool:
        assert target not in self.tokens, "a sequence in use was handed out"
        if length > self._window:
            return False
        self.tokens[target] = self.tokens[source][:length]
        return True

    def save(self, sequence: int) -> CellBytes:
        return np.array(self.tokens[sequence], np.uint8)

    def restore(self, target: int, saved: CellBytes, length: int) -> int | None:
        assert target not in self.tokens, "a sequence in use was handed out"
        if sum(map(len, self.tokens.values())) + len(saved) > self.room:
            return None
        self.tokens[target] = saved[:length].tolist()
        self.copied += 1
        return length

    def shorten(self, sequence: int, length: int) -> bool:
        if length > self._window:
            self.forget(sequence)
            return False
        self.tokens[sequence] = self.tokens[sequence][:length]
        return True

    def copy(self, source: int, target: int) -> None:
        assert target not in self.tokens, "a sequence in use was handed out"
        self.tokens[target] = self.tokens[source]

    def forget(self, sequence: int) -> None:
        self.tokens.pop(sequence, None)

    def feed(self, sequence: int, tokens: list[int]) -> None:
        self.tokens[sequence] = list(tokens)


def cache(table: Table, *, sequences: int = 4, limit: int = 1000, stash: int = 0) -> PrefixCache:
    return PrefixCache(table, sequences=sequences, limit=limit, stash=stash)


def served(prefixes: PrefixCache, table: Table, text: str, owner: object = OWNER) -> int:
    """Serve a prompt, whose answer is empty; how many of its tokens were there already."""
    tokens = list(text.encode())
    sequence, cached = prefixes.begin(owner, np.array(tokens, np.int32))
    assert table.tokens.get(sequence, []) == tokens[:cached]
    table.feed(sequence, tokens)
    prefixes.keep(Holding(sequence, owner, np.array(tokens, np.int32)))
    return cached


@pytest.mark.parametrize(
    ("one", "other", "length"),
    [("", "abc", 0), ("abc", "abd", 2), ("abc", "abcde", 3), ("a" * 100 + "b", "a" * 100 + "c", 100)],
)
def test_a_common_beginning_is_measured_to_the_token(one: str, other: str, length: int):
    """Whichever of the two is longer."""
    arrays = [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in (one, other)]
    assert common_prefix(*arrays) == common_prefix(*reversed(arrays)) == length


def test_a_request_takes_over_the_longest_beginning():
    """Of two conversations that begin alike, the one that goes on with it."""
    table = Table()
    prefixes = cache(table)
    assert served(prefixes, table, "system: be kind. user: a") == 0
    assert served(prefixes, table, "system: be kind. user: b") == len("system: be kind. user: ")
    assert served(prefixes, table, "system: be kind. user: b and more") == len("system: be kind. user: b")
    assert prefixes.counts.hit_tokens == 2 * len("system: be kind. user: ") + 1


def test_the_last_token_of_a_prompt_is_decoded_again():
    """Its logits begin the answer: also of a prompt that the cache holds whole."""
    table = Table()
    prefixes = cache(table)
    served(prefixes, table, "again")
    assert served(prefixes, table, "again") == 4


def test_a_running_sequence_gives_its_beginning_too():
    """Requests that come at the same time need not wait for each other's end."""
    table = Table()
    prefixes = cache(table)
    sequence, _ = prefixes.begin(OWNER, np.arange(10, dtype=np.int32))
    table.feed(sequence, [*range(10)])
    running = [Holding(sequence, OWNER, np.arange(6, dtype=np.int32))]  # so far
    assert prefixes.begin(OWNER, np.arange(9, dtype=np.int32), running)[1] == 6


def test_a_gap_is_closed_by_moving_a_later_sequence():
    """Into the first one that is free; one that has none before it stays."""
    table = Table()
    prefixes = cache(table, limit=0)
    running = [prefixes.begin(OWNER, np.arange(number, number + 9, dtype=np.int32))[0] for number in range(3)]
    for sequence in running:
        table.feed(sequence, [sequence] * 5)
    prefixes.drop(running[0])
    assert prefixes.close_gap(running[2]) == running[0]
    assert prefixes.close_gap(running[1]) == running[1]
    assert table.tokens == {running[0]: [2] * 5, running[1]: [1] * 5}
    assert prefixes.take() == running[2]


@pytest.mark.parametrize("stranger", [(None, "other tenant"), ("adapter", "default")])
def test_nothing_is_shared_between_owners(stranger: tuple[object, str]):
    """Neither between tenants nor between adapters, not even the whole prompt."""
    table = Table()
    prefixes = cache(table)
    served(prefixes, table, "a secret")
    assert served(prefixes, table, "a secret", stranger) == 0


def test_the_least_recently_used_goes_first():
    """When sequences run out: one that was taken over lately stays."""
    table = Table()
    prefixes = cache(table, sequences=3)
    for text in ("aa", "bb", "cc"):
        served(prefixes, table, text)
    served(prefixes, table, "aaa")  # "aa" was touched, so "bb" goes; then "aaa" replaces "aa"
    assert sorted(map(tuple, table.tokens.values())) == sorted([tuple(b"aaa"), tuple(b"cc")])
    assert prefixes.counts.evictions == 1


def test_what_is_kept_stays_within_its_limit():
    """Counted in tokens, a common beginning once: "abcd" and "abxy" are 6 tokens."""
    table = Table()
    prefixes = cache(table, limit=6)
    served(prefixes, table, "abcd")
    served(prefixes, table, "abxy")
    assert (prefixes.counts.kept_tokens, prefixes.counts.kept_sequences, prefixes.counts.evictions) == (6, 2, 0)
    served(prefixes, table, "z")
    assert (prefixes.counts.kept_tokens, prefixes.counts.kept_sequences) == (5, 2)


def test_a_beginning_of_what_is_kept_takes_no_sequence_of_its_own():
    """The shorter one says nothing more, whichever came first."""
    table = Table()
    prefixes = cache(table)
    for text in ("ab", "abcd", "abc"):
        served(prefixes, table, text)
    assert list(table.tokens.values()) == [list(b"abcd")]
    assert prefixes.counts.kept_tokens == 4


def test_a_limit_of_nothing_keeps_nothing():
    """The prefix cache is off."""
    table = Table()
    prefixes = cache(table, limit=0)
    served(prefixes, table, "again")
    assert served(prefixes, table, "again") == 0
    assert table.tokens == {}


def test_a_cache_that_refuses_to_share_prefills():
    """A sliding window may have lost the beginning."""
    table = Table(window=3)
    prefixes = cache(table)
    served(prefixes, table, "abcdef")
    assert served(prefixes, table, "abcdef") == 0
    assert prefixes.counts.hit_tokens == 0


def test_what_an_unloaded_adapter_left_is_given_up():
    """Its cells mean nothing to the next one."""
    table = Table()
    prefixes = cache(table)
    served(prefixes, table, "one", ("adapter", "default"))
    served(prefixes, table, "two")
    prefixes.disown("adapter")
    assert list(table.tokens.values()) == [list(b"two")]
    assert (prefixes.counts.kept_tokens, prefixes.counts.kept_sequences) == (3, 1)


def test_what_leaves_the_cells_comes_back_from_the_stash():
    """A long prompt whose place was needed: its next turn finds all of it, and nobody else does."""
    table = Table()
    prefixes = cache(table, limit=50, stash=1000)
    served(prefixes, table, "a" * 40)
    served(prefixes, table, "b" * 40)
    assert list(table.tokens.values()) == [list(b"b" * 40)]
    assert prefixes.counts.stashed_bytes == 40
    assert served(prefixes, table, "a" * 45, (None, "stranger")) == 0
    assert served(prefixes, table, "a" * 45) == 40


def test_the_stash_keeps_each_beginning_once():
    """What goes on with it takes its place."""
    table = Table()
    prefixes = cache(table, limit=50, stash=1000)
    for text in ("a" * 40, "b" * 40, "a" * 44, "b" * 44):
        served(prefixes, table, text)
    assert prefixes.counts.stashed_bytes == 40 + 44  # "b" from its first turn, "a" from its second


def test_the_stash_stays_within_its_bytes():
    """The least recently used goes, and then it is decoded again."""
    table = Table()
    prefixes = cache(table, limit=40, stash=90)
    for letter in "abcde":
        served(prefixes, table, letter * 40)
        assert prefixes.counts.stashed_bytes <= 90
    assert served(prefixes, table, "a" * 41) == 0
    assert served(prefixes, table, "d" * 41) == 40


def test_a_copy_comes_back_only_where_there_is_room():
    """What is kept makes room for it; where running requests hold the cells, the prompt is decoded again."""
    table = Table(room=100)
    prefixes = cache(table, limit=50, stash=1000)
    served(prefixes, table, "a" * 40)
    served(prefixes, table, "b" * 40)  # "a" is in the stash, "b" kept
    table.tokens[99] = [0] * 50  # a running one
    assert served(prefixes, table, "a" * 45) == 40
    table.tokens[99] = [0] * 90
    assert served(prefixes, table, "b" * 45) == 0


def test_the_stash_of_an_unloaded_adapter_is_given_up():
    """Another one may come by its name."""
    table = Table()
    prefixes = cache(table, limit=50, stash=1000)
    served(prefixes, table, "a" * 40, ("adapter", "default"))
    served(prefixes, table, "b" * 40)
    prefixes.disown("adapter")
    assert prefixes.counts.stashed_bytes == 0
    assert served(prefixes, table, "a" * 45, ("adapter", "default")) == 0


def test_with_cells_of_its_own_a_conversation_goes_on_where_it_lies():
    """Its sequence is taken as it is; from the copy it comes only where another has taken its place."""
    table = Table(shared=False)
    prefixes = cache(table, sequences=1, limit=0, stash=1000)
    assert [served(prefixes, table, "a" * length) for length in (40, 50, 45)] == [0, 40, 44]
    assert table.copied == 0
    served(prefixes, table, "b" * 40)
    assert served(prefixes, table, "a" * 60) == 50
    assert table.copied == 1
    prefixes.disown(None)
    assert served(prefixes, table, "a" * 60) == 0


def test_a_few_tokens_in_common_are_taken_over_where_they_lie():
    """How every prompt of a template begins, say: nothing is copied for them, and nobody else's are taken."""
    table = Table(shared=False)
    prefixes = cache(table, sequences=1, limit=0, stash=1000)
    asked = ["<user> " + letter * 40 for letter in "abc"]
    assert [served(prefixes, table, text) for text in asked] == [0, 7, 7]
    assert served(prefixes, table, asked[0], (None, "other tenant")) == 0
    assert (table.copied, prefixes.counts.hit_tokens) == (0, 14)


def test_where_a_sequence_lost_its_beginning_it_is_decoded_again():
    """A sliding window."""
    table = Table(window=42, shared=False)
    prefixes = cache(table, sequences=1, limit=0, stash=1000)
    served(prefixes, table, "a" * 60)
    table.restore = lambda target, saved, length: 0  # type: ignore[method-assign]
    assert served(prefixes, table, "a" * 70) == 0


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(30, 60), st.sampled_from("xy")), max_size=30))
@settings(max_examples=200, deadline=None)
def test_cells_of_their_own_never_hold_what_another_asked(requests: list[tuple[str, int, str]]):
    """Whatever lies in free sequences: a prompt finds its own beginning (see `served`), and all that the stash has."""
    table = Table(shared=False)
    prefixes = cache(table, sequences=2, limit=0, stash=10**6)
    longest: dict[tuple[str, str], int] = {}
    for letter, length, tenant in requests:
        found = served(prefixes, table, letter * length, (None, tenant))
        known = min(longest.get((letter, tenant), 0), length - 1)
        assert found == known if known >= WORTH_COPYING else found in {0, known}  # of few, what costs nothing
        if length >= WORTH_COPYING:
            longest[letter, tenant] = max(longest.get((letter, tenant), 0), length)
        assert sorted(prefixes._free) == [0, 1]


@given(st.lists(st.tuples(st.text("ab", min_size=1, max_size=8), st.sampled_from("xy")), max_size=30))
@settings(max_examples=200, deadline=None)
def test_counts_are_those_of_the_cache_whatever_comes(requests: list[tuple[str, str]]):
    """kept_tokens is the number of different beginnings, by owner, and no sequence is lost."""
    table = Table()
    prefixes = cache(table, sequences=3, limit=12)
    for text, tenant in requests:
        served(prefixes, table, text, (None, tenant))
        kept = prefixes._kept.values()
        beginnings = {(held.owner, tuple(held.tokens[: end + 1])) for held in kept for end in range(len(held.tokens))}
        assert prefixes.counts.kept_tokens == len(beginnings) <= 12
        assert len(prefixes._free) + len(kept) == 3
        assert {held.sequence: held.tokens.tolist() for held in kept} == table.tokens
