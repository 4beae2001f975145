"""Training of the demo model: that it descends, stops and continues."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from train import demo_handbook, demo_loss, tokenizer
from train.demo_encode import Encoded, encode
from train.demo_examples import Writer
from train.demo_text import document
from train.demo_train import Trainer, batches, rate
from train.model import Shape

TEXT = "The parser reads every line of the configuration file. Workers restart after the memory limit was reached."


@pytest.fixture(scope="module")
def learnt() -> tokenizer.Tokenizer:
    books = (demo_handbook.write(random.Random(number), held_out=False).text for number in range(100))
    return tokenizer.train(books, vocabulary=500)


@pytest.fixture(scope="module")
def examples(learnt: tokenizer.Tokenizer) -> list[Encoded]:
    writer = Writer([document("test", "notes.md", TEXT)], {}, held_out=False, seed=1, words=["apple", "river", "stone"])
    return [encode(learnt, writer.example(number, level=0.1)) for number in range(12)]


def trainer(folder: Path, learnt: tokenizer.Tokenizer) -> Trainer:
    shape = Shape(vocabulary=learnt.get_vocab_size(), width=80, hidden=96, window=4096)
    return Trainer(folder, learnt, shape)


def test_updates_lower_the_loss(tmp_path: Path, learnt: tokenizer.Tokenizer, examples: list[Encoded]) -> None:
    """The same batch, again and again, is learnt."""
    made = trainer(tmp_path, learnt)
    same = list(batches(examples, random.Random(0)))[:1]
    losses = [made.update(same, hours=1.0)["answer"] for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_restart_continues_where_it_stopped(
    tmp_path: Path, learnt: tokenizer.Tokenizer, examples: list[Encoded]
) -> None:
    """The next update after a restart is the one that would have come."""
    torch.manual_seed(1)
    chosen = list(batches(examples, random.Random(0)))[:2]
    first = trainer(tmp_path, learnt)
    first.update(chosen, hours=1.0)
    first.save()
    second = trainer(tmp_path, learnt)
    assert second.progress == first.progress
    chance = torch.get_rng_state()
    expected = first.update(chosen, hours=1.0)
    torch.set_rng_state(chance)
    assert second.update(chosen, hours=1.0) == expected


def test_padding_does_not_change_what_is_right(
    tmp_path: Path, learnt: tokenizer.Tokenizer, examples: list[Encoded]
) -> None:
    """An answer is judged alike alone and beside a longer example."""
    made = trainer(tmp_path, learnt)
    together = demo_loss.loss(made.network, made.probe, demo_loss.collate(examples), help_weight=0).right
    alone = [
        demo_loss.loss(made.network, made.probe, demo_loss.collate([example]), help_weight=0).right[0]
        for example in examples
    ]
    assert together.tolist() == [bool(one) for one in alone]


def test_attention_is_judged_within_its_own_row() -> None:
    """The loss of a pair is the negative log of the softmax over what that position sees, and over nothing else."""
    torch.manual_seed(0)
    queries, keys = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    pairs = demo_loss.Pairs(torch.tensor([0, 1]), torch.tensor([3, 4]), torch.tensor([1, 4]))
    expected = [
        -torch.log_softmax(queries[row, looks] @ keys[row, : looks + 1].T / 2, 0)[at]
        for row, looks, at in zip(*(part.tolist() for part in pairs), strict=True)
    ]
    assert torch.allclose(demo_loss.looking(queries, keys, pairs), torch.stack(expected).mean())


def test_positions_left_out_are_seen_as_distance(
    tmp_path: Path, learnt: tokenizer.Tokenizer, examples: list[Encoded]
) -> None:
    """The same tokens with a gap behind the first one give other states; with positions counted up, the same."""
    made = trainer(tmp_path, learnt)
    batch = demo_loss.collate([replace(examples[0], gap=0)])
    far = demo_loss.collate([replace(examples[0], gap=500)])
    plain = made.network.trace(batch.tokens).hidden
    assert torch.allclose(made.network.trace(batch.tokens, batch.positions).hidden, plain, atol=1e-5)
    assert not torch.allclose(made.network.trace(far.tokens, far.positions).hidden, plain, atol=1e-2)


def test_the_rate_rises_holds_and_falls(tmp_path: Path, learnt: tokenizer.Tokenizer) -> None:
    """Warm-up by updates, decay by the clock."""
    progress = trainer(tmp_path, learnt).progress
    assert rate(progress, 1.0) < 0.1
    progress.step = 1000
    assert rate(progress, 1.0) == 1.0
    progress.seconds = 3600
    assert rate(progress, 1.0) == pytest.approx(0.03)
