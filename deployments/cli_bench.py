"""`mindfu bench MODEL…`: compare models and quantisations on this machine. Each is tried in a process of its own."""

import argparse
import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from pydantic import ValidationError

from app.errors import MindFuError
from app.llama.bench import TOGETHER, Figures, measure
from app.llama.source import locate
from app.settings import LLMSettings, home

COLUMNS = ("model", "file MB", "load s", "prompt tok/s", "first token ms", "tok/s", f"tok/s × {TOGETHER}", "memory MB")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the command line."""
    bench = commands.add_parser("bench", help="compare models on this machine: speed, time to first token, memory")
    bench.add_argument("models", nargs="+", metavar="MODEL", help="demo, a path to a .gguf, or hf://org/repo/file.gguf")
    bench.add_argument("--tokens", type=int, default=64, help="of each answer")
    bench.add_argument("--window", type=int, default=LLMSettings().window)
    bench.add_argument("--threads", type=int)
    bench.add_argument("--gpu-layers", type=int, default=0)
    bench.add_argument("--cache-type", choices=("f16", "q8_0", "q4_0"), default="f16", help="of keys and values")
    bench.add_argument("--flash-attention", choices=("auto", "on", "off"), default="auto")
    bench.add_argument("--json", action="store_true", help="print JSON")
    bench.set_defaults(action=_bench)


def _bench(options: argparse.Namespace) -> int:
    """0: all were measured; 2: one could not be."""
    found, failed = [], 0
    for model in options.models:
        try:
            found.append(_measured(model, options))
        except (MindFuError, ValidationError) as exc:
            print(f"{model}: {exc}", file=sys.stderr)
            failed = 2
    print(json.dumps([figures._asdict() for figures in found], indent=2) if options.json else _table(found))
    return failed


def _measured(model: str, options: argparse.Namespace) -> Figures:
    settings = LLMSettings(
        model=model,
        window=options.window,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
        cache_type_k=options.cache_type,
        cache_type_v=options.cache_type,
        flash_attention=options.flash_attention,
    )
    path = locate(model, home())
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, model, path, settings, options.tokens).result()


def _table(found: list[Figures]) -> str:
    rows = [COLUMNS, *map(_row, found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) if at else cell.ljust(width) for at, (cell, width) in enumerate(line))
        for line in (list(zip(row, widths, strict=True)) for row in rows)
    )


def _row(figures: Figures) -> tuple[str, ...]:
    return (
        figures.model,
        f"{figures.file_bytes / 1e6:.1f}",
        f"{figures.load_s:.2f}",
        f"{figures.prompt_tokens_per_s:.0f}",
        f"{1000 * figures.first_token_s:.1f}",
        f"{figures.tokens_per_s:.1f}",
        f"{figures.together_tokens_per_s:.1f}",
        f"{figures.memory_bytes / 1e6:.0f}",
    )
