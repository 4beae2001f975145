"""What the demo model is taught by: the answer's tokens, and, early on, where to look.

Copying a sentence out of a long prompt takes circuits that form slowly from the answer alone. So a few heads are told
where to attend (the token before; the token to copy; the sentence's end; from there its start), and a probe that is
thrown away later asks, at each sentence's end, whether this is the sentence. The help fades out during training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.demo_encode import Encoded
from train.demo_examples import WINDOW
from train.model import Llama

FIRST_TOKENS = 3  # of an answer: they choose between quoting and declining, and the sentence
FIRST_WEIGHT = 5.0
STRANGERS = 8  # one in so many of the words that the question does not hold
TEXT_SHARE, TEXT_WEIGHT = 0.08, 0.1  # of the prompt's tokens, learnt as plain text
PROBE_LAYER = 2
PREVIOUS = ((0, 0, 1), (0, 1, 2))  # (layer, head, how many tokens back)
MATCH_HEADS = ((1, 2), (1, 4))  # from a passage's word to the same word in the question, or to the very first token
GATHER_HEADS = ((2, 1), (2, 2))  # from a sentence's end to its words that the question holds, or the very first token
START_HEADS = ((1, 1, 0), (2, 3, 0), (2, 0, 1))  # (layer, head, order): from a sentence's end to its first two tokens
# from the answer's first tokens to the end of the quoted sentence, or the very first token
CHOICE_HEADS = ((3, 2), (3, 3), (3, 4), (4, 2))
FIRST_HEADS = ((4, 0), (4, 1))  # from the opening quotation mark to the first token to copy
COPY_HEADS = ((3, 0), (3, 1), (4, 0), (4, 1))  # from an answer's token to the one to copy


class Pairs(NamedTuple):
    """Where to look: row, position that looks, position looked at; each [n]."""

    row: Tensor
    looks: Tensor
    at: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples padded to one length, all [rows, length]. weights: of predicting the next token.

    answers: where the next token is the answer's. quoted: for each of `starts`, 1 where that one is to be quoted.
    judged: for each of them, whether it stands behind the question, so that its end can tell.
    """

    tokens: Tensor
    positions: Tensor
    weights: Tensor
    answers: Tensor
    firsts: Pairs
    copies: Pairs
    choices: Pairs
    starts: Pairs
    seconds: Pairs
    matches: Pairs
    strangers: Pairs
    gathers: Pairs
    quoted: Tensor
    judged: Tensor


class Loss(NamedTuple):
    """total: to descend; the rest: for the log. right: of each row, whether greedy text would be the answer."""

    total: Tensor
    answer: float
    attention: float
    probe: float
    right: Tensor


def _pairs(triples: Sequence[tuple[int, int, int]]) -> Pairs:
    return Pairs(*torch.tensor(triples, dtype=torch.long).reshape(-1, 3).unbind(1))


def collate(examples: Sequence[Encoded]) -> Batch:
    """Pad on the right: what follows an answer cannot be seen from it."""
    length = max(len(example.tokens) for example in examples)
    tokens = torch.zeros(len(examples), length, dtype=torch.long)
    positions = torch.arange(length).repeat(len(examples), 1)
    weights = torch.zeros(len(examples), length)
    firsts, copies, choices, starts, seconds, quoted, matches, strangers, gathers = [], [], [], [], [], [], [], [], []
    judged = []
    for row, example in enumerate(examples):
        size = len(example.tokens)
        tokens[row, :size] = torch.tensor(example.tokens)
        positions[row, 1:] += example.gap
        weights[row, example.answer : size - 1] = 1.0
        weights[row, example.answer : example.answer + FIRST_TOKENS] = FIRST_WEIGHT
        for (_, before), (looks, at) in pairwise([(0, -1), *example.pointers]):
            if at not in (before, before + 1):  # it starts to copy from elsewhere
                weights[row, looks] = FIRST_WEIGHT
        firsts += [(row, looks, at) for looks, at in example.pointers[:1]]
        copies += [(row, looks, at) for looks, at in example.pointers[1:]]
        gathers += [(row, looks, at) for looks, at in example.gathers]
        told = {looks for looks, _ in example.gathers}
        for start, end, is_quoted in example.sentences:
            starts.append((row, end, start))
            seconds.append((row, end, min(start + 1, end)))
            quoted.append(is_quoted)
            judged.append(end not in told)
            if end not in told:
                shared = [looks for looks, at in example.matches if at and start <= looks <= end]
                gathers += [(row, end, looks) for looks in shared or [0]]
            if is_quoted:
                choices += [(row, example.answer + step, end) for step in range(FIRST_TOKENS)]
                choices += [(row, looks, end) for looks, _ in example.pointers[:1] if looks >= example.answer + 3]
        if example.kind.endswith("refusal") or (example.kind == "no tool call" and not example.pointers):
            choices.append((row, example.answer, 0))
        matches += [(row, looks, at) for looks, at in example.matches if at]
        strangers += [(row, looks, at) for looks, at in example.matches[::STRANGERS] if not at]
    positions.clamp_(max=WINDOW - 1)  # of the padding, which nothing sees
    answers = weights > 0
    return Batch(
        tokens,
        positions,
        weights,
        answers,
        _pairs(firsts),
        _pairs(copies),
        _pairs(choices),
        _pairs(starts),
        _pairs(seconds),
        _pairs(matches),
        _pairs(strangers),
        _pairs(gathers),
        torch.tensor(quoted, dtype=torch.float32),
        torch.tensor(judged, dtype=torch.bool),
    )


def looking(queries: Tensor, keys: Tensor, pairs: Pairs) -> Tensor:
    """How unlikely one head is to attend where it should, mean over pairs. queries, keys: [rows, length, head]."""
    if not len(pairs.row):
        return torch.zeros(())
    rows, length, head = keys.shape
    scores = queries[pairs.row, pairs.looks] @ keys.reshape(rows * length, head).T / head**0.5
    row, place = torch.arange(rows * length).div(length, rounding_mode="floor"), torch.arange(rows * length) % length
    seen = (row == pairs.row[:, None]) & (place <= pairs.looks[:, None])
    assert bool((pairs.at <= pairs.looks).all())
    return functional.cross_entropy(scores.masked_fill(~seen, -torch.inf), pairs.row * length + pairs.at)


def loss(network: Llama, probe: nn.Linear, batch: Batch, *, help_weight: float) -> Loss:
    """help_weight: of the attention and probe terms, 0 switches them off. Some prompt tokens join, drawn by torch."""
    trace = network.trace(batch.tokens[:, :-1], batch.positions[:, :-1])
    nexts = batch.tokens[:, 1:]
    text = (torch.rand(nexts.shape) < TEXT_SHARE) & (nexts > 0) & ~batch.answers[:, :-1]
    weights = torch.where(text, TEXT_WEIGHT, batch.weights[:, :-1])
    chosen = weights > 0
    logits = network.logits(trace.hidden[chosen])
    losses = functional.cross_entropy(logits, nexts[chosen], reduction="none")
    answer = (losses * weights[chosen]).sum() / weights[chosen].sum()
    wrong = torch.zeros_like(chosen)
    wrong[chosen] = logits.detach().argmax(-1) != nexts[chosen]
    right = ~(wrong & batch.answers[:, :-1]).any(1)
    attention = answered = torch.zeros(())
    if help_weight > 0:
        attention = _attention(trace.queries, trace.keys, batch)
        if batch.judged.any():
            row, place = batch.starts.row[batch.judged], batch.starts.looks[batch.judged]
            ends = probe(trace.states[PROBE_LAYER][row, place]).squeeze(-1)
            answered = functional.binary_cross_entropy_with_logits(
                ends, batch.quoted[batch.judged], pos_weight=torch.tensor(4.0)
            )
    total = answer + help_weight * (0.35 * attention + 0.5 * answered)
    return Loss(total, float(answer.detach()), float(attention.detach()), float(answered.detach()), right)


def _attention(queries: list[Tensor], keys: list[Tensor], batch: Batch) -> Tensor:
    rows, length = batch.tokens.shape
    row = torch.randint(rows, (64,))
    place = torch.randint(4, length - 1, (64,))
    terms = [
        looking(queries[layer][:, head], keys[layer][:, head], Pairs(row, place, place - back))
        for layer, head, back in PREVIOUS
    ]
    terms += [looking(queries[layer][:, head], keys[layer][:, head], batch.copies) for layer, head in COPY_HEADS]
    terms += [looking(queries[layer][:, head], keys[layer][:, head], batch.firsts) for layer, head in FIRST_HEADS]
    terms += [looking(queries[layer][:, head], keys[layer][:, head], batch.choices) for layer, head in CHOICE_HEADS]
    for layer, head, order in START_HEADS:
        pairs = batch.seconds if order else batch.starts
        terms.append(looking(queries[layer][:, head], keys[layer][:, head], pairs))
    terms += [looking(queries[layer][:, head], keys[layer][:, head], batch.gathers) for layer, head in GATHER_HEADS]
    for layer, head in MATCH_HEADS:
        terms.append(looking(queries[layer][:, head], keys[layer][:, head], batch.matches))
        terms.append(looking(queries[layer][:, head], keys[layer][:, head], batch.strangers))
    return torch.stack(terms).mean()
