"""Stage 3 of the demo model: train it. Stops after --hours of each thread's processor time; a second start continues.

    python -m train.demo_train --out .mindfu/demo --hours 1.6

Writes checkpoint.pt (every few minutes and on SIGTERM) and learning.csv (held-out scores as training goes on).
Lessons grow from a few short sentences to prompts as retrieval makes them: harder when most answers come out right.
"""

# ruff: noqa: S311 - chance here orders examples, it guards nothing
import argparse
import csv
import json
import math
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from train import demo_loss, demo_text, gguf_export, tokenizer
from train.demo_encode import Encoded, encode
from train.demo_examples import Writer, fronted
from train.model import Llama, Shape, initialise
from train.muon import Muon

SEED = 20261121
POOL = 384  # examples drawn at once, so that those of one length share a batch
BATCH_TOKENS = 1400  # padded; what stays in the processor's cache is nearly twice as fast as a large batch
BATCHES = (2, 4)  # to an update: in the lower half of the levels, in the upper
WARMUP = 40  # updates
DECAY_FROM, FINAL = 0.2, 0.03  # share of the hours after which the rate falls, and what is left of it
HELP_UNTIL = 0.9  # share of the hours
SCORE_EVERY = 600.0  # seconds
SAVE_EVERY = 180.0
BEHIND = 2000  # characters of system prompt that some scores are taken behind, about 600 tokens
MATRIX_RATE, VECTOR_RATE = 0.02, 0.006
RAISE_ABOVE, LOWER_BELOW, RAISE, LOWER = 0.25, 0.15, 0.003, 0.002  # of the level, by the share of right answers
CLIP = 1.0


@dataclass
class Progress:
    """Where training stands."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    drawn: int = 0
    level: float = 0.0
    right: float = 0.0  # running share of quotes that greedy decoding would get right


def writers(out: Path, *, seed: int) -> tuple[Writer, Writer]:
    """(for training, for evaluation on held-out documents and wordings)."""
    trained, held_out = demo_text.load(out / "documents.jsonl")
    rarity = demo_text.rarity(trained)
    words = sorted(word for word, count in rarity.items() if word.isalpha() and 2 < len(word) < 13 and count > 2)
    askable = [found for found in held_out if found.clean]
    return Writer(trained, rarity, False, seed, words), Writer(askable, rarity, True, seed, words)


def lexical(network: Llama, learnt: Tokenizer, *, seed: int) -> None:
    """Let "Refund", " refund" and " refunds" begin alike: the embedding of a token shares parts with its kin."""
    generator = torch.Generator().manual_seed(seed)
    kin: dict[str, torch.Tensor] = {}
    weight = network.model.embed_tokens.weight
    with torch.no_grad():
        for token in range(learnt.get_vocab_size()):
            text = learnt.decode([token]).strip().lower()
            for key in {f"={text}", f"~{text[:4]}"} if text.isalpha() and len(text) > 2 else {f"={text}"}:
                if key not in kin:
                    kin[key] = torch.randn(weight.shape[1], generator=generator) * 0.3
                weight[token] += kin[key]


def batches(pool: list[Encoded], rng: random.Random) -> Iterator[demo_loss.Batch]:
    """Batches of one length each, in random order."""
    pool = sorted(pool, key=lambda example: len(example.tokens))
    groups: list[list[Encoded]] = [[]]
    for example in pool:
        if groups[-1] and len(example.tokens) * (len(groups[-1]) + 1) > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(example)
    rng.shuffle(groups)
    for group in groups:
        yield demo_loss.collate(group)


def rate(progress: Progress, hours: float) -> float:
    """The learning rate's share of its full value: warm-up, plateau, linear fall."""
    done = min(1.0, progress.seconds / (hours * 3600))
    fall = 1.0 if done < DECAY_FROM else 1 - (1 - FINAL) * (done - DECAY_FROM) / (1 - DECAY_FROM)
    return min(1.0, (progress.step + 1) / WARMUP) * fall


def scoring_set(writer: Writer, learnt: Tokenizer) -> dict[str, list[Encoded]]:
    """Held-out examples by name: with four passages each, the same behind a system prompt, and with tools on offer."""
    kinds = {"docs": True, "handbook": True, "docs refusal": False, "handbook refusal": False}
    made = {
        kind: [
            writer.grounded(number, source=kind.split()[0], passages=4, answerable=answerable) for number in range(32)
        ]
        for kind, answerable in kinds.items()
    }
    made["handbook behind"] = [
        fronted(example, writer.front(number, BEHIND)) for number, example in enumerate(made["handbook"])
    ]
    for kind in ("tool call", "no tool call"):
        made[kind] = [writer.of_kind(number, kind) for number in range(32)]
    return {kind: [encode(learnt, example) for example in examples] for kind, examples in made.items()}


@torch.no_grad()
def scores(network: Llama, sets: dict[str, list[Encoded]]) -> dict[str, float]:
    """The share of answers that greedy decoding would give word for word."""
    probe = nn.Linear(network.shape.width, 1)
    found = {}
    for kind, examples in sets.items():
        rights = [
            demo_loss.loss(network, probe, batch, help_weight=0).right for batch in batches(examples, random.Random(0))
        ]
        found[kind] = round(float(torch.cat(rights).float().mean()), 4)
    return found


class Trainer:
    """Everything that a checkpoint holds."""

    def __init__(self, out: Path, learnt: Tokenizer, shape: Shape, *, threads: int = 1) -> None:
        self.workers = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
        self.path = out / "checkpoint.pt"
        self.network = Llama(shape)
        initialise(self.network, seed=SEED)
        lexical(self.network, learnt, seed=SEED)
        self.probe = nn.Linear(shape.width, 1)
        matrices = [w for name, w in self.network.named_parameters() if w.ndim == 2 and "embed" not in name]
        others = [w for name, w in self.network.named_parameters() if w.ndim == 1 or "embed" in name]
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01),
            torch.optim.AdamW([*others, *self.probe.parameters()], lr=VECTOR_RATE, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.full_rates = [MATRIX_RATE, VECTOR_RATE]
        self.progress = Progress()
        if self.path.exists():
            self._restore()

    def _restore(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.probe.load_state_dict(state["probe"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.progress = Progress(**state["progress"])
        torch.set_rng_state(state["chance"])

    def save(self) -> None:
        """Replace the checkpoint in one move, so that a crash leaves the old one or the new one."""
        state = {
            "network": self.network.state_dict(),
            "probe": self.probe.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "progress": asdict(self.progress),
            "chance": torch.get_rng_state(),
            "shape": asdict(self.network.shape),
        }
        fresh = self.path.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.path)

    def update(self, chosen: list[demo_loss.Batch], hours: float, *, rated: float = 1.0) -> dict[str, float]:
        """One step of the optimisers over a few batches. Returns the mean losses.

        rated: share of the learning rates.
        """
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        help_weight = max(0.0, 1 - self.progress.seconds / (hours * 3600 * HELP_UNTIL))
        sums: Counter[str] = Counter()

        def descend(batch: demo_loss.Batch) -> demo_loss.Loss:
            found = demo_loss.loss(self.network, self.probe, batch, help_weight=help_weight)
            (found.total / len(chosen)).backward()  # type: ignore[no-untyped-call]
            return found

        for batch, found in zip(chosen, self.workers.map(descend, chosen), strict=True):
            sums.update({"answer": found.answer, "attention": found.attention, "probe": found.probe})
            rows = torch.unique(batch.starts.row[batch.quoted > 0])
            if len(rows):
                share = float(found.right[rows].float().mean())
                self.progress.right += 0.02 * (share - self.progress.right)
            self.progress.tokens += batch.tokens.numel()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        for optimiser, full in zip(self.optimisers, self.full_rates, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = full * rated * rate(self.progress, hours)
            optimiser.step()
        self.progress.step += 1
        self._adapt()
        return {name: round(total / len(chosen), 4) for name, total in sums.items()}

    def _adapt(self) -> None:
        if self.progress.right > RAISE_ABOVE:
            self.progress.level = min(1.0, self.progress.level + RAISE)
        elif self.progress.right < LOWER_BELOW:
            self.progress.level = max(0.0, self.progress.level - LOWER)


def log(path: Path, row: dict[str, float]) -> None:
    """Append a row to learning.csv and print it."""
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as lines:
        writer = csv.DictWriter(lines, fieldnames=list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    print(json.dumps(row), flush=True)


def main(out: Path, hours: float, threads: int, start: Path | None, rated: float) -> None:
    """Train until the hours are over or someone asks to stop."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stopped.append(received))
    loaded = gguf_export.read(start) if start else None
    if loaded:
        loaded.tokenizer.save(str(out / "tokenizer.json"))
    learnt = tokenizer.load(out / "tokenizer.json")
    writer, held_out = writers(out, seed=SEED)
    sets = scoring_set(held_out, learnt)
    shape = loaded.shape if loaded else Shape(vocabulary=learnt.get_vocab_size())
    trainer = Trainer(out, learnt, shape, threads=threads)
    if loaded and trainer.progress.step == 0:
        trainer.network.load_state_dict(loaded.weights)
        trainer.progress.level = 1.0
    progress = trainer.progress
    print(f"{trainer.network.shape.parameters():,} parameters, step {progress.step}", flush=True)
    rng = random.Random(f"{SEED}:{progress.drawn}")
    ready: list[demo_loss.Batch] = []
    saved = scored = progress.seconds
    while progress.seconds < hours * 3600 and not stopped:
        began = time.process_time()
        count = BATCHES[progress.level > 0.5]
        if len(ready) < count:
            numbers = range(progress.drawn, progress.drawn + POOL)
            progress.drawn += POOL
            pool = [encode(learnt, writer.example(n, level=progress.level)) for n in numbers]
            ready = list(batches([example for example in pool if len(example.tokens) <= shape.window], rng))
        losses = trainer.update([ready.pop() for _ in range(count)], hours, rated=rated)
        progress.seconds += (time.process_time() - began) / threads  # of processor time: pauses do not count
        assert math.isfinite(losses["answer"])
        if progress.step % 20 == 0:
            state = {"step": progress.step, "s": round(progress.seconds), "level": round(progress.level, 3)}
            speed = round(progress.tokens / progress.seconds)
            print(json.dumps({**state, "right": round(progress.right, 3), **losses, "tok/s": speed}), flush=True)
        if progress.seconds - scored > SCORE_EVERY:
            scored = progress.seconds
            row = {
                "step": progress.step,
                "seconds": round(scored),
                "tokens": progress.tokens,
                "level": round(progress.level, 3),
            }
            log(out / "learning.csv", {**row, "answer_loss": losses["answer"], **scores(trainer.network, sets)})
        if progress.seconds - saved > SAVE_EVERY:
            saved = progress.seconds
            trainer.save()
    trainer.save()
    row = {
        "step": progress.step,
        "seconds": round(progress.seconds),
        "tokens": progress.tokens,
        "level": round(progress.level, 3),
    }
    log(out / "learning.csv", {**row, "answer_loss": 0.0, **scores(trainer.network, sets)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(".mindfu/demo"))
    parser.add_argument("--hours", type=float, default=1.6)
    parser.add_argument("--threads", type=int, default=1, help="batches computed at the same time")
    parser.add_argument(
        "--start", type=Path, help="train on from this GGUF's weights and tokenizer, which know where to look"
    )
    parser.add_argument(
        "--rate", type=float, default=1.0, help="share of the learning rates; 0.3 where training goes on"
    )
    options = parser.parse_args()
    main(options.out, options.hours, options.threads, options.start, options.rate)
