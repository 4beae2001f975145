"""A model folder with an adapter merged into it, as transformers and vLLM read it.

One file at a time: a base of any size is merged in the memory of its largest file. Everything else of the folder
(tokenizer, template, configuration) is copied.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from app.errors import InvalidRequest
from train.lora import Delta

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SHARDS, TEMPLATE = "*.safetensors", "chat_template.jinja"  # which goes before the one in tokenizer_config.json


def merge(folder: Path, deltas: Mapping[str, Delta], base: Path, template: str | None = None) -> None:
    """Write the base's folder with the adapter in it. template: for chats, in place of the base's own.

    Raises InvalidRequest where the adapter does not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left = {f"{module}.weight": delta for module, delta in deltas.items()}
    for file in sorted(base.iterdir()):
        if file.is_file() and not file.match(SHARDS):
            shutil.copyfile(file, folder / file.name)
    if template is not None:
        (folder / TEMPLATE).write_text(template, encoding="utf-8")
    for shard in sorted(base.glob(SHARDS)):
        _merge_shard(folder / shard.name, left, shard)
    if left:
        message = f"{base} has no {', '.join(sorted(left)[:3])}, to which the adapter would be added."
        raise InvalidRequest(message, "adapter")


def _merge_shard(target: Path, left: dict[str, Delta], shard: Path) -> None:
    tensors = {}
    with safetensors.safe_open(shard, framework="pt") as file:
        metadata = file.metadata()
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            tensor = file.get_tensor(name)
            delta = left.pop(name, None)
            tensors[name] = tensor if delta is None else _added(name, tensor, delta)
    safetensors.torch.save_file(tensors, target, metadata=metadata)


def _added(name: str, tensor: torch.Tensor, delta: Delta) -> torch.Tensor:
    rows, columns = len(delta.b), delta.a.shape[1]
    if tuple(tensor.shape) != (rows, columns):
        message = f"{name} is {' × '.join(map(str, tensor.shape))}, in the adapter it is {rows} × {columns}."
        raise InvalidRequest(message, "adapter")
    if tensor.dtype not in FLOATS:
        message = f"{name} is stored as {tensor.dtype}. Give the base in bfloat16, float16 or float32."
        raise InvalidRequest(message, "base")
    return (tensor.float() + torch.from_numpy(delta.matrix())).to(tensor.dtype)
