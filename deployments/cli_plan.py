"""`mindfu plan`: whether tuning a model fits into a GPU's memory, before anything is downloaded or started."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from app.errors import InvalidRequest, MindFuError, Misconfigured
from app.llama.source import DEMO_FILE
from app.settings import DEMO_MODEL
from deployments.cli_options import Json
from train import stages
from train.plan import KNOWN, Plan, Shape
from train.plan import plan as planned
from train.recipe import Recipe

GIB = 2**30
WORDS = {
    "weights": "weights of the base",
    "adapter": "the adapter",
    "optimiser": "optimiser (AdamW, 8 bits)",
    "kept": "inputs of layers, gradients",
    "working": "one layer, or a tile of logits",
    "runtime": "CUDA and its libraries",
}


def plan(
    *,
    model: Annotated[str, typer.Option(help="demo, a folder, a config.json, a .gguf, or org/name.")] = DEMO_MODEL,
    gpu: Annotated[float | None, typer.Option(metavar="GIB", help="Its memory, to be told whether it fits.")] = None,
    params: Annotated[Path | None, typer.Option(help="YAML, whose section `tune` counts; else defaults.")] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter of tuning.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Tell whether tuning a model fits into a GPU's memory.

    Exit status 0: it fits, or nobody asked; 1: it does not; 2: it cannot be told.
    """
    try:
        shape = shape_of(model)
        told = dict(stages.pair("--set", text) for text in changes or ())
        recipe = stages.section("tune", Recipe, params or Path(), told)
        made = planned(shape, recipe)
    except MindFuError as error:
        print(error, file=sys.stderr)
        return 2
    fits = None if gpu is None else made.total <= gpu * GIB
    if as_json:
        told_bytes = {**made._asdict(), "total": made.total}
        print(json.dumps({"parameters": shape.parameters(), "bytes": told_bytes, "fits": fits}))
        return 1 if fits is False else 0
    print(table(model, shape, recipe, made))
    if gpu is None:
        return 0
    print(f"{'Fits' if fits else 'Does not fit'}: {made.total / GIB:.1f} of {gpu:g} GiB.{'' if fits else REMEDY}")
    return 0 if fits else 1


REMEDY = " Lower tune.window or tune.batch (and raise tune.accumulation), or set tune.quantise."


def shape_of(model: str) -> Shape:
    """The shape of a model by its config.json, its GGUF, or its name. Raises InvalidRequest and Misconfigured."""
    if model in KNOWN:
        return KNOWN[model]
    path = DEMO_FILE if model == DEMO_MODEL else Path(model).expanduser()
    if path.is_dir():
        path /= "config.json"
    if path.suffix == ".gguf" and path.is_file():
        return _of_gguf(path)
    if not path.exists():
        path = _downloaded(model)
    try:
        return Shape.of(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, AttributeError) as error:
        raise InvalidRequest(f"{path} is no config.json ({error}).", "model") from error


def table(name: str, shape: Shape, recipe: Recipe, made: Plan) -> str:
    """The plan for people."""
    told = "all weights" if recipe.adapter is None else f"a LoRA of rank {recipe.adapter.rank}"
    head = (
        f"{name}: {_many(shape.parameters())} parameters, {told} on {'NF4' if recipe.quantise else 'unquantised'} "
        f"weights, {recipe.batch} rows of {recipe.window} tokens"
    )
    rows = [f"  {WORDS[part]:<32}{size / GIB:8.2f} GiB" for part, size in made._asdict().items()]
    return "\n".join([head, *rows, f"  {'together':<32}{made.total / GIB:8.2f} GiB"])


def _many(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.2f}M"


def _of_gguf(path: Path) -> Shape:
    import gguf

    reader = gguf.GGUFReader(path)

    def number(key: str, otherwise: int | None = None) -> int:
        field = reader.get_field(f"{architecture}.{key}")
        if field is None and otherwise is None:
            raise InvalidRequest(f"{path} does not say its {key}.", "model")
        return int(otherwise if field is None else field.contents())  # type: ignore[arg-type]

    name = reader.get_field("general.architecture")
    architecture = str(name.contents()) if name else ""
    heads, width = number("attention.head_count"), number("embedding_length")
    return Shape(
        vocabulary=len(reader.get_field("tokenizer.ggml.tokens").data),
        width=width,
        layers=number("block_count"),
        heads=heads,
        groups=number("attention.head_count_kv", heads),
        head=number("attention.key_length", width // heads),
        hidden=number("feed_forward_length"),
        tied=not any(tensor.name == "output.weight" for tensor in reader.tensors),
    )


def _downloaded(model: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, "config.json"))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = f"Give a folder or a config.json, or one of {', '.join(KNOWN)}."
        raise Misconfigured("--model", f"{model} is neither here nor to be had ({reason})", remedy) from error
