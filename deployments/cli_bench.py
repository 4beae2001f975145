"""`mindfu bench MODEL…`: compare models and quantisations on this machine. Each is tried in a process of its own."""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Annotated, Literal

import typer
from pydantic import ValidationError

from app.errors import MindFuError
from app.llama.bench import TOGETHER, Figures, measure
from app.llama.source import locate
from app.settings import CacheType, LLMSettings, home
from deployments.cli_columns import columns
from deployments.cli_options import Json

HEAD = ("model", "file MB", "load s", "prompt tok/s", "first token ms", "tok/s", f"tok/s × {TOGETHER}", "memory MB")


def bench(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="demo, a path to a .gguf, or hf://org/repo/file.gguf")
    ],
    *,
    tokens: Annotated[int, typer.Option(help="Of each answer.")] = 64,
    window: int = LLMSettings().window,
    threads: int | None = None,
    gpu_layers: int = 0,
    cache_type: Annotated[CacheType, typer.Option(help="Of keys and values.")] = "f16",
    flash_attention: Literal["auto", "on", "off"] = "auto",
    as_json: Json = False,
) -> int:
    """Compare models on this machine: speed, time to first token, memory.

    Exit status 0: all were measured; 2: one could not be.
    """
    found, failed = [], 0
    for model in models:
        try:
            settings = LLMSettings(
                model=model,
                window=window,
                threads=threads,
                gpu_layers=gpu_layers,
                cache_type_k=cache_type,
                cache_type_v=cache_type,
                flash_attention=flash_attention,
            )
            found.append(_measured(settings, tokens))
        except (MindFuError, ValidationError) as exc:
            print(f"{model}: {exc}", file=sys.stderr)
            failed = 2
    rows = [_row(figures) for figures in found]
    print(
        json.dumps([figures._asdict() for figures in found], indent=2) if as_json else columns(HEAD, rows, right=True)
    )
    return failed


def _measured(settings: LLMSettings, tokens: int) -> Figures:
    path = locate(settings.model, home())
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(measure, settings.model, path, settings, tokens).result()


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
