"""The model that tuning starts from, as transformers reads it: a folder with weights, tokenizer and chat template.

    find("demo", home)                      the demo model, out of its GGUF
    find("/models/any.gguf", home)          a GGUF of an architecture that transformers can read back
    find("/models/folder", home)            as transformers saved it
    find("org/name", home)                  from the Hugging Face Hub, or its cache

A GGUF is turned into a folder once, under <home>/models. Its weights are the served ones: what quantisation took is
gone, so an adapter that was tuned on them fits the file that serves it.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import gguf

from app.errors import Misconfigured
from app.llama.source import DEMO_FILE
from app.settings import DEMO_MODEL
from train import tokenizer

SETTING = "tune.base"
WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt")  # of a repository; no other formats


class Base(NamedTuple):
    """A base model. content: a hash of its files; gguf: the file that it came from and is served as; None: no file."""

    folder: Path
    content: str
    gguf: Path | None


def present(name: str) -> None:
    """Raises Misconfigured, within a second, where there is no such model to tune. The Hub is not asked."""
    path = _path(name)
    if path.suffix == ".gguf" or path.is_file():
        if not path.is_file():
            raise Misconfigured(SETTING, f"there is no file {path}", "Give the path of a .gguf, or a folder.")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise Misconfigured(SETTING, f"{path} is no GGUF file", "Give another one.")
    elif path.is_dir():
        _has_all(path)
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise Misconfigured(SETTING, f"there is no {path}", "Give demo, a .gguf, a folder, or org/name of the Hub.")


def find(name: str, home: Path) -> Base:
    """The base of a name, made or downloaded if need be. Raises Misconfigured where there is none."""
    present(name)
    path = _path(name)
    if path.is_file():
        _can_be_read_back(path)
        content = _sha256(path)
        return Base(_restored(path, content, home), content, path)
    folder = path if path.is_dir() else _downloaded(name, home)
    _has_all(folder)
    files = {file.name: _sha256(file) for file in sorted(folder.iterdir()) if file.is_file()}
    return Base(folder, hashlib.sha256(json.dumps(files).encode()).hexdigest(), None)


def _path(name: str) -> Path:
    return DEMO_FILE if name == DEMO_MODEL else Path(name).expanduser()


def _can_be_read_back(path: Path) -> None:
    """A GGUF of a kind that cannot become weights for training is refused."""
    if _ours(path):
        return
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    name = _fields(path)["general.architecture"]
    if name not in GGUF_SUPPORTED_ARCHITECTURES:
        known = ", ".join(sorted(GGUF_SUPPORTED_ARCHITECTURES))
        problem = f"{path} is of the architecture '{name}', which cannot be read back from a GGUF for training"
        raise Misconfigured(SETTING, problem, f"Give the folder of its safetensors instead. Readable: {known}.")


def _has_all(folder: Path) -> None:
    for pattern in ("config.json", "*.safetensors", "tokenizer.json"):
        if not list(folder.glob(pattern)):
            problem = f"{folder} holds no {pattern}"
            raise Misconfigured(SETTING, problem, "Give a folder as transformers' save_pretrained writes it.")


def _restored(path: Path, content: str, home: Path) -> Path:
    """The folder of a GGUF. Made beside its place and moved there, so that half of one is never found."""
    folder = home / "models" / f"{path.stem}-{content[:16]}"
    if folder.is_dir():
        return folder
    part = folder.with_name(f".{folder.name}-{os.getpid()}")
    part.mkdir(parents=True)
    try:
        if _ours(path):
            from train import demo_export  # here, as it takes PyTorch seconds to load

            demo_export.restore(path, part)
        else:
            _read_by_transformers(path, part)
        try:
            part.rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _ours(path: Path) -> bool:
    """Whether train/gguf_export.py wrote it, which knows the tokenizer exactly."""
    fields = _fields(path)
    tokens = fields["tokenizer.ggml.tokens"]
    special = list(tokenizer.SPECIAL)
    ours = fields["general.architecture"] == "llama" and fields["tokenizer.ggml.pre"] == tokenizer.PRE_TOKENIZER
    return ours and isinstance(tokens, list) and tokens[: len(special)] == special


def _fields(path: Path) -> dict[str, object]:
    """What a GGUF says about these; None where it says nothing."""
    reader = gguf.GGUFReader(path)
    names = ("general.architecture", "tokenizer.ggml.pre", "tokenizer.ggml.tokens")
    found = {name: reader.get_field(name) for name in names}
    return {name: None if field is None else field.contents() for name, field in found.items()}


def _read_by_transformers(path: Path, folder: Path) -> None:
    import torch
    import transformers

    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    dense = transformers.GgufConfig(dequantize=True)  # else it keeps the file's blocks, which it cannot save
    auto = transformers.AutoModelForCausalLM
    try:
        auto.from_pretrained(**place, dtype=torch.bfloat16, quantization_config=dense).save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(**place).save_pretrained(folder)
    except (RuntimeError, ValueError, KeyError, NotImplementedError) as error:
        problem = f"transformers cannot read {path} back for training ({error})"
        raise Misconfigured(SETTING, problem, "Give the folder of its safetensors instead.") from error


def _downloaded(name: str, home: Path) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, cache_dir=home / "models", allow_patterns=list(WEIGHTS)))
    except (OSError, ValueError) as error:  # the Hub's errors are all of these two families
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "Check the name and the network, or download it elsewhere and give its folder."
        raise Misconfigured(SETTING, f"{name} cannot be downloaded ({reason})", remedy) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
