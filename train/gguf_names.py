"""How the layers that transformers names lie in a GGUF: what they are called there, and in which order their rows are.

llama.cpp rotates the queries and keys of some architectures by neighbouring pairs, where transformers rotates halves:
their rows are in another order in the file. Which do is not written in the file, so the architectures that were held
against transformers (tests/integration/test_lora_formats.py) are named here, and others are refused.
"""

from pathlib import Path
from typing import NamedTuple

import gguf

from app.errors import InvalidRequest
from train.gguf_export import interleaved
from train.lora import Array

PAIRED: dict[str, bool] = {"llama": True, "mistral3": True, "qwen2": False, "qwen3": False}
"""By GGUF's name: whether queries and keys are rotated by pairs."""
TEXT = "language_model."  # what models that also see put before the names of their layers


class Layout(NamedTuple):
    """What must be known of a base to find its layers. heads and kv_heads: of each layer."""

    architecture: str
    blocks: int
    heads: int
    kv_heads: int

    def tensor(self, module: str) -> str:
        """The tensor of a layer: model.layers.0.self_attn.q_proj → blk.0.attn_q.weight. Raises InvalidRequest."""
        arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        table = gguf.get_tensor_name_map(arch, self.blocks)
        name = table.get_name(module.replace(TEXT, ""))
        if name is None:
            message = f"A GGUF of the architecture '{self.architecture}' has no layer '{module}'."
            raise InvalidRequest(message, "adapter")
        return f"{name}.weight"

    def ordered(self, module: str, rows: Array) -> Array:
        """Rows of a layer's matrix, or of what is multiplied from its left, in the order of the file."""
        if not PAIRED[self.architecture] or not module.endswith((".q_proj", ".k_proj")):
            return rows
        return interleaved(rows, self.heads if module.endswith(".q_proj") else self.kv_heads)


def layout(path: Path) -> Layout:
    """Of a base. Raises InvalidRequest for one whose layers we do not know."""
    reader = gguf.GGUFReader(path)
    architecture = str(value(reader, "general.architecture"))
    if architecture not in PAIRED:
        message = (
            f"{path} is of the architecture '{architecture}'. Adapters can be written for {', '.join(sorted(PAIRED))}."
        )
        raise InvalidRequest(message, "base")
    heads = _number(reader, f"{architecture}.attention.head_count")
    kv_key = f"{architecture}.attention.head_count_kv"
    kv_heads = _number(reader, kv_key) if reader.get_field(kv_key) else heads
    return Layout(architecture, _number(reader, f"{architecture}.block_count"), heads, kv_heads)


def value(reader: gguf.GGUFReader, key: str) -> object:
    """What a GGUF says. Raises InvalidRequest where it says nothing."""
    field = reader.get_field(key)
    if field is None:
        message = f"The GGUF says nothing of '{key}'."
        raise InvalidRequest(message, "base")
    found: object = field.contents()
    return found


def _number(reader: gguf.GGUFReader, key: str) -> int:
    found = value(reader, key)
    if not isinstance(found, int):
        message = f"The GGUF's '{key}' differs from layer to layer ({found}), which is not supported."
        raise InvalidRequest(message, "base")
    return found
