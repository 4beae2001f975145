"""Tuning: our stage against a plain TRL script, what Ray adds, memory, and the time to go on after a crash.

    python -m benchmarks.training FOLDER             conversations as JSON Lines, in files of the folder
    python -m benchmarks.training FOLDER --memory    the plan of train/plan.py against what PyTorch allocates

Each way runs in a process of its own, forked when the libraries are loaded, in turns, on the same conversations, with
the same model, adapter, batch and precision. Tokens are those of conversations, padding excluded; seconds those of
optimiser steps, the first left out. CPU seconds tell more than seconds where others use the machine, too.
"""

import argparse
import gc
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from train import base, lines, plan, stages, tune
from train.recipe import Recipe
from train.stages import Work

WAYS = ("plain", "plain_packed", "ours", "ray", "two_workers", "resume")
REPEATED = ("plain", "plain_packed", "ours")
SHAPES: tuple[tuple[dict[str, int], dict[str, int]], ...] = (
    ({"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_key_value_heads": 4,
      "num_hidden_layers": 8}, {"window": 192, "rank": 32}),
    ({"hidden_size": 1536, "intermediate_size": 6144, "num_attention_heads": 12, "num_key_value_heads": 2,
      "head_dim": 128, "num_hidden_layers": 3, "vocab_size": 512}, {"window": 256}),
    ({"num_hidden_layers": 12, "vocab_size": 16_000}, {"batch": 1, "window": 256}),
)  # fmt: skip
"""Of models and rows for --memory: none of those that train/plan.py was fitted to."""
SMALL = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 8,
         "num_key_value_heads": 4, "vocab_size": 6144}  # fmt: skip


def main() -> None:
    """Run all ways, or one of them, as a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--quantise", action="store_true", help="QLoRA; on CPUs this measures bitsandbytes' emulation")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    if options.memory:
        memory()
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """All ways in turns, and a table."""
    import bitsandbytes  # noqa: F401 - loaded once, for all

    from train import fitting  # noqa: F401

    found: dict[str, list[dict[str, float]]] = {way: [] for way in options.ways}
    for number in range(options.rounds):
        for way in options.ways if number == 0 else [way for way in options.ways if way in REPEATED]:
            with ProcessPoolExecutor(1, get_context("fork")) as pool:
                found[way].append(pool.submit(one, options, way).result())
            print(way, found[way][-1], file=sys.stderr, flush=True)
    first = next(iter(found.values()))
    plain = statistics.median(one["tokens_per_s"] for one in first)
    work = statistics.median(one["tokens_per_cpu_s"] for one in first)
    name = next(iter(found))
    print(
        f"| way | tokens/s | ratio to {name} | tokens/CPU s | ratio | peak MB | wall s |\n|---|---|---|---|---|---|---|"
    )
    for way, all_of in found.items():
        told = {n: statistics.median(one[n] for one in all_of) for n in all_of[0]}
        both = f"{told['tokens_per_s']:.0f} | {told['tokens_per_s'] / plain:.2f} | "
        cpu = told.get("tokens_per_cpu_s")  # of Ray's workers nobody knows
        both += f"{cpu:.0f} | {cpu / work:.2f}" if cpu else "– | –"
        print(f"| {way} | {both} | {told['peak_mb']:.0f} | {told['wall_s']:.1f} |")
    if "resume" in found:
        print(f"\nGoing on from a checkpoint: {found['resume'][0]['resume_s']:.1f} s to the first step.")


def one(options: argparse.Namespace, way: str) -> dict[str, float]:
    """Measure one way."""
    recipe = Recipe(
        window=options.window, max_steps=options.steps, log_steps=1, quantise=options.quantise, evaluate_steps=1000
    )
    with tempfile.TemporaryDirectory() as scratch:
        ways: dict[str, Callable[[Path, Recipe, Path], dict[str, float]]] = {
            "plain": plain, "plain_packed": plain_packed, "ours": ours, "ray": on_ray,
            "two_workers": two_workers, "resume": resumed,
        }  # fmt: skip
        began = time.monotonic()
        figures = ways[way](split(options.folder, Path(scratch)), recipe, Path(scratch))
        from train.fitting import memory_bytes

        peak = figures.pop("memory_bytes", None) or memory_bytes()
        return {**figures, "peak_mb": peak / 2**20, "wall_s": time.monotonic() - began}


def split(folder: Path, scratch: Path) -> Path:
    """The conversations as a split without validation."""
    made = scratch / "split"
    made.mkdir()
    told = [
        lines.dump(line) for file in sorted(folder.glob("*.jsonl")) for line in lines.read(file) if any(line.weights)
    ]
    lines.save(made / "train.jsonl", told)
    lines.save(made / "validation.jsonl", [])
    return made


def plain(data: Path, recipe: Recipe, scratch: Path, *, packing: bool = False) -> dict[str, float]:
    """What TRL's documentation has one write: load, SFTTrainer, train."""
    import datasets
    import transformers
    import trl

    from train.fitting import lora

    folder = base.find(recipe.base, scratch).folder
    clock = Clock()
    quantised = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    adapter = recipe.adapter
    assert adapter is not None
    told = [json.loads(text)["messages"] for text in lines.texts(data / "train.jsonl")]
    plain_messages = [[{"role": m["role"], "content": m["content"] or ""} for m in messages] for messages in told]
    trainer = trl.SFTTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=quantised if recipe.quantise else None
        ),
        args=trl.SFTConfig(
            output_dir=str(scratch / "plain"),
            max_length=recipe.window,
            packing=packing,
            per_device_train_batch_size=recipe.batch,
            gradient_accumulation_steps=recipe.accumulation,
            max_steps=recipe.max_steps or -1,
            learning_rate=recipe.rate,
            logging_steps=1,
            optim="paged_adamw_8bit",
            bf16=False,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
        ),
        train_dataset=datasets.Dataset.from_list([{"messages": messages} for messages in plain_messages]),
        processing_class=transformers.AutoTokenizer.from_pretrained(folder),
        peft_config=lora(adapter),
        callbacks=[clock.callback()],
    )
    trainer.train()
    return clock.speeds()


def plain_packed(data: Path, recipe: Recipe, scratch: Path) -> dict[str, float]:
    """The same with TRL's packing."""
    return plain(data, recipe, scratch, packing=True)


def ours(data: Path, recipe: Recipe, scratch: Path) -> dict[str, float]:
    """Our stage without Ray."""
    from train.fitting import fit

    clock = Clock()

    def report(told: dict[str, float], _: object) -> None:
        if "tokens_per_s" in told:
            clock.look(told["tokens"])

    fit(_job(data, recipe, scratch), report=report, scratch=scratch / "ours")
    return clock.speeds()


def on_ray(data: Path, recipe: Recipe, scratch: Path) -> dict[str, float]:
    """The whole stage: tokenising, Ray Train, MLflow."""
    cpus = float((os.cpu_count() or 1) // recipe.workers)  # which is how many threads Ray gives each
    whole = recipe.model_copy(update={"cpus": cpus})
    folder = stages.run(tune.STAGE, inputs={"data": data}, parameters=whole, home=scratch / "home")
    numbers = [json.loads(text) for text in lines.texts(folder / tune.HISTORY)]
    return {"tokens_per_s": _speed(numbers), "memory_bytes": max(told["memory_bytes"] for told in numbers)}


def two_workers(data: Path, recipe: Recipe, scratch: Path) -> dict[str, float]:
    """The same by two processes, each on half of a step's rows; tokens are those of both, memory that of the first."""
    return on_ray(data, recipe.model_copy(update={"workers": 2, "accumulation": recipe.accumulation // 2}), scratch)


def resumed(data: Path, recipe: Recipe, scratch: Path) -> dict[str, float]:
    """Stop behind the first step, and go on from its checkpoint in the same process."""
    from train.fitting import fit

    job = _job(data, recipe.model_copy(update={"evaluate_steps": 1, "max_steps": 2}), scratch)

    def stop(_: dict[str, float], checkpoint: Path | None) -> None:
        if checkpoint is not None:
            shutil.copytree(checkpoint, scratch / "kept")
            raise InterruptedError

    try:
        fit(job, report=stop, scratch=scratch / "first")
    except InterruptedError:
        began = time.time()
    numbers: list[dict[str, float]] = []
    fit(job, report=lambda told, _: numbers.append(told), scratch=scratch / "second", resume=scratch / "kept")
    first = next(told for told in numbers if "tokens_per_s" in told)
    step_s = first["tokens"] / first["tokens_per_s"]
    return {"tokens_per_s": first["tokens_per_s"], "resume_s": first["time"] - began - step_s}


def memory() -> None:
    """The plan against the most that PyTorch held, on models of random weights, in bf16 as on a GPU."""
    print("| model | rows | planned MB | allocated MB | off by |\n|---|---|---|---|---|")
    for shape, rows in SHAPES:
        recipe = Recipe.model_validate({"precision": "bf16", "accumulation": 2, "max_steps": 2, "log_steps": 1} | rows)
        with tempfile.TemporaryDirectory() as scratch:
            config = SMALL | shape
            allocated = most_allocated(config, recipe, Path(scratch))
        planned = plan.plan(plan.Shape.of(config | {"tie_word_embeddings": False}), recipe, gpu=False).tensors
        told = f"{recipe.batch} × {recipe.window}, rank {recipe.adapter.rank if recipe.adapter else 0}"
        name = f"{config['num_hidden_layers']} × {config['hidden_size']}/{config['intermediate_size']}"
        off = planned / allocated - 1
        print(f"| {name} | {told} | {planned / 1e6:.0f} | {allocated / 1e6:.0f} | {off:+.1%} |", flush=True)


def most_allocated(config: dict[str, int], recipe: Recipe, scratch: Path) -> int:
    """Bytes of tensors at the worst moment of the second step: those that live at its begin, and what comes on top."""
    import datasets
    import torch
    import transformers
    from torch.profiler import ProfilerActivity, profile

    from train.fitting import Job, fit

    folder, demo = scratch / "model", base.find("demo", scratch).folder
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, tie_word_embeddings=False))
    made.to(torch.bfloat16).save_pretrained(folder)
    del made
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo / name, folder / name)
    length = recipe.window
    labels = [-100] * (length // 2) + [5] * (length - length // 2)
    row = {"input_ids": [5] * length, "labels": labels, "seq_lengths": [length // 4] * 4}
    datasets.Dataset.from_list([row] * (2 * recipe.batch * recipe.accumulation)).save_to_disk(
        str(scratch / "rows" / "train")
    )
    job = Job(base=folder, content=stages.content(folder), rows=scratch / "rows", recipe=recipe)
    profiled = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    lives: list[int] = []

    def report(numbers: dict[str, float], checkpoint: Path | None) -> None:
        if checkpoint is None and numbers["step"] == 1:
            lives.append(living())
            profiled.start()
        elif checkpoint is None and numbers["step"] == 2 and len(lives) == 1:
            profiled.stop()
            lives.append(0)

    fit(job, report=report, scratch=scratch / "fit")
    held = most = lives[0]
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return int(most)


def living() -> int:
    """Bytes of all tensors of this process, what they share counted once."""
    import torch

    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one).__module__ != "weakref" and isinstance(one, torch.Tensor)]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


class Clock:
    """Tokens of conversations, seconds, and this process's CPU seconds of steps, the first left out."""

    def __init__(self) -> None:
        self.at: list[tuple[float, float, float]] = []

    def look(self, tokens: float) -> None:
        """A step has ended."""
        self.at.append((tokens, time.monotonic(), time.process_time()))

    def callback(self) -> Any:
        """For TRL's trainer."""
        from transformers import TrainerCallback

        clock = self

        class Logged(TrainerCallback):  # type: ignore[misc]
            def on_log(self, _: object, __: object, ___: object, logs: dict[str, float], **____: object) -> None:
                if "num_tokens" in logs and "loss" in logs:
                    clock.look(float(logs["num_tokens"]))

        return Logged()

    def speeds(self) -> dict[str, float]:
        """Tokens a second, of both kinds."""
        tokens, wall, cpu = (last - first for first, last in zip(self.at[0], self.at[-1], strict=True))
        return {"tokens_per_s": tokens / wall, "tokens_per_cpu_s": tokens / cpu}


def _job(data: Path, recipe: Recipe, scratch: Path) -> Any:
    from train.fitting import Job

    found = base.find(recipe.base, scratch)
    work = Work({"data": data}, recipe, scratch, scratch, {"base": found.content})
    tune.tokenise(work, found, scratch / "rows")
    return Job(base=found.folder, content=found.content, rows=scratch / "rows", recipe=recipe)


def _speed(numbers: list[dict[str, float]]) -> float:
    first, *_, last = (told for told in numbers if "tokens_per_s" in told)
    return (last["tokens"] - first["tokens"]) / (last["time"] - first["time"])


if __name__ == "__main__":
    main()
