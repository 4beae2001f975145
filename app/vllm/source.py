"""Where the files of a vLLM model are: a folder as transformers saves it, or a repository on the Hugging Face Hub."""

import json
import re
from math import prod
from pathlib import Path

from app.errors import Misconfigured

HUB = re.compile(r"hf://(?P<repository>[^/]+/[^/]+)")
FILES = ["*.json", "*.jinja", "*.txt", "*.safetensors", "tokenizer.model"]  # of a repository
LEFT = ["consolidated*", "*/*"]  # the same weights in Mistral's own format, and other formats in folders
NEEDED = ("config.json", "tokenizer.json", "*.safetensors")
SETTING = "llm.model"
INSTALL = "uv sync --frozen --inexact --no-dev --extra vllm"
REMEDY = "Give a folder as transformers saves it, with config.json, tokenizer.json and *.safetensors, or hf://org/repo"


def locate(model: str, home: Path) -> Path:
    """The folder of a model, downloaded into `home/models` if need be. model: as `VllmSettings.model`.

    Raises Misconfigured where it is not there, lacks a file that we need, or the Hub cannot be reached.
    """
    folder = _downloaded(model, home) if "://" in model else Path(model).expanduser().absolute()
    if not folder.is_dir():
        raise Misconfigured(SETTING, f"there is no folder {folder}", REMEDY)
    for name in NEEDED:
        if not any(folder.glob(name)):
            raise Misconfigured(SETTING, f"{folder} has no {name}", REMEDY)
    return folder


def present(model: str, home: Path) -> Path | None:
    """The same folder where it is here already; None: it is not. Downloads nothing, and raises nothing."""
    address = HUB.fullmatch(model)
    if address is None:
        folder = Path(model).expanduser().absolute()
        return folder if folder.is_dir() else None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(address["repository"], cache_dir=home / "models", local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def weights_bytes(folder: Path) -> int:
    """Of the files that hold the weights."""
    return sum(file.stat().st_size for file in _weights(folder))


def parameters(folder: Path) -> int | None:
    """How many numbers the weights are, by the heads of their files; None where they are quantised."""
    if "quantization_config" in (folder / "config.json").read_text(encoding="utf-8"):
        return None
    return sum(prod(tensor["shape"]) for file in _weights(folder) for tensor in _head(file))


def described(folder: Path) -> str:
    """What the model says it is."""
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kinds = ", ".join(written.get("architectures") or [str(written.get("model_type", "a model"))])
    return f"{kinds} on vLLM"


def _weights(folder: Path) -> list[Path]:
    """The files of transformers; Mistral's own hold the same again."""
    return [file for file in folder.glob("*.safetensors") if not file.match(LEFT[0])]


def _head(file: Path) -> list[dict[str, list[int]]]:
    """The tensors of a safetensors file: 8 bytes of length, then JSON."""
    with file.open("rb") as opened:
        written = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return [tensor for name, tensor in written.items() if name != "__metadata__"]


def _downloaded(model: str, home: Path) -> Path:
    """hf://org/repo, with progress on the terminal."""
    address = HUB.fullmatch(model)
    if address is None:
        raise Misconfigured(SETTING, f"'{model}' is no address of a model", "Write it as hf://org/repo")
    from huggingface_hub import snapshot_download  # half a second that a folder need not wait for

    folder = home / "models"
    try:
        found = snapshot_download(address["repository"], cache_dir=folder, allow_patterns=FILES, ignore_patterns=LEFT)
    except (OSError, ValueError) as error:  # the Hub's errors are all of these two families
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "Check the address and the network, or download the repository elsewhere and give its folder"
        raise Misconfigured(SETTING, f"{model} cannot be downloaded ({reason})", remedy) from error
    return Path(found)
