"""What stands in front of the demo model's questions."""

import random

import pytest

from train import demo_front
from train.demo_text import Document, document
from train.demo_words import LISTS

WORDS = ["apple", "river", "stone", "cloud", "window", "paper"]
DOCUMENTS: list[Document] = [document("test", "notes.md", "One fact stands here. Another fact stands there.")]


@pytest.mark.parametrize("characters", [60, 500, 8000])
def test_a_front_has_the_length_that_was_asked_for(characters: int) -> None:
    """No longer, and shorter by a word or a line's blank lines at most."""
    for seed in range(20):
        rng = random.Random(seed)
        text = demo_front.write(rng, characters, documents=DOCUMENTS, words=WORDS, held_out=False)
        assert characters - 80 <= len(text) <= characters


def test_lengths_stay_within_bounds_and_are_mostly_short() -> None:
    """From a sentence to what leaves room for the question in the window; half are under 600 characters."""
    rng = random.Random(1)
    lengths = sorted(demo_front.length(rng) for _ in range(1000))
    assert demo_front.SHORTEST <= lengths[0] <= lengths[-1] <= demo_front.LONGEST
    assert lengths[500] < 600 < lengths[900]


@pytest.mark.parametrize("name", ["front_openings", "front_headings", "front_rules"])
def test_held_out_wordings_are_never_trained_on(name: str) -> None:
    """A list's wordings are split in two, and each side has some."""
    trained, kept = (set(demo_front.kept(LISTS[name], held_out=held_out)) for held_out in (False, True))
    assert trained
    assert kept
    assert not trained & kept
    assert trained | kept == set(LISTS[name])
