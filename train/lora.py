"""A LoRA adapter as PEFT saves it: its matrices, and how much of them is added to each layer. Plain numpy.

What is no plain LoRA (DoRA, trained biases, whole layers beside it, token embeddings) is refused: served formats do not
have it.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors
import torch

from app.errors import InvalidRequest

Array = npt.NDArray[np.float32]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
PART = re.compile(r"(?P<module>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")


class Delta(NamedTuple):
    """What is added to one matrix W [rows, columns]: scale · B·A. a: [rank, columns]; b: [rows, rank]."""

    a: Array
    b: Array
    scale: float

    @property
    def rank(self) -> int:
        return len(self.a)

    def matrix(self) -> Array:
        """The whole of it, [rows, columns]."""
        product: Array = (self.b @ self.a) * np.float32(self.scale)
        return product


def read(folder: Path) -> dict[str, Delta]:
    """The deltas of an adapter by the names of their layers: model.layers.0.self_attn.q_proj.

    Raises InvalidRequest for a folder that holds no adapter, or one that cannot be served.
    """
    config = _config(folder)
    _refuse(folder, config)
    found: dict[str, dict[str, Array]] = {}
    try:
        with safetensors.safe_open(folder / WEIGHTS, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                module, part = _module(folder, name)
                found.setdefault(module, {})[part] = file.get_tensor(name).to(torch.float32).numpy()
    except (OSError, safetensors.SafetensorError) as error:
        message = f"{folder / WEIGHTS} cannot be read: {error}."
        raise InvalidRequest(message, "adapter") from error
    for module, parts in found.items():
        if parts.keys() != {"A", "B"}:
            message = f"{folder / WEIGHTS} has one half of a LoRA for {module} only."
            raise InvalidRequest(message, "adapter")
    return {
        module: Delta(parts["A"], parts["B"], scaling(config, module, len(parts["A"])))
        for module, parts in sorted(found.items())
    }


def scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """How much of B·A counts: alpha over the rank, or over its root (rsLoRA). rank: of this layer's matrices."""
    alpha = next(
        (float(value) for pattern, value in (config.get("alpha_pattern") or {}).items() if _matches(pattern, module)),
        float(config["lora_alpha"]),
    )
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _matches(pattern: str, module: str) -> bool:
    """As PEFT matches the keys of rank_pattern and alpha_pattern."""
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def _config(folder: Path) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"{folder} holds no adapter as PEFT saves it: {CONFIG} cannot be read ({error})."
        raise InvalidRequest(message, "adapter") from error
    return told


def _refuse(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    reasons = {
        f"it is of the kind {kind}": kind != "LORA",
        "it is a DoRA": config.get("use_dora"),
        "it has trained biases": config.get("bias", "none") != "none" or config.get("lora_bias"),
        "it has whole layers beside the LoRA (modules_to_save)": config.get("modules_to_save"),
        "it has trained tokens": config.get("trainable_token_indices"),
        "its matrices are stored transposed (fan_in_fan_out)": config.get("fan_in_fan_out"),
    }
    for reason, applies in reasons.items():
        if applies:
            message = f"{folder} cannot be served: {reason}. Train a plain LoRA."
            raise InvalidRequest(message, "adapter")


def _module(folder: Path, name: str) -> tuple[str, str]:
    """The layer that a tensor belongs to, and whether it is A or B."""
    part = PART.fullmatch(name)
    if part is None or not name.startswith(PREFIX):
        message = f"{folder} cannot be served: it has '{name}', which is no half of a linear layer's LoRA."
        raise InvalidRequest(message, "adapter")
    return part["module"].removeprefix(PREFIX), part["part"]
