"""An adapter as a GGUF LoRA: what llama.cpp loads beside the base.

    python -m train.gguf_lora ADAPTER_FOLDER BASE.gguf OUT.gguf

The matrices keep their precision (float32 as PEFT trains them, or float16 on demand). llama.cpp scales B·A by one alpha
over each matrix's rank: where PEFT's scales are not that, the difference is multiplied into B.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np

from app.errors import InvalidRequest
from app.llama.styles import TAUGHT_BY
from train import gguf_names, lora
from train.lora import Delta


def write(
    path: Path, deltas: Mapping[str, Delta], base: Path, *, half: bool = False, taught_by: str | None = None
) -> None:
    """Write an adapter. base: the GGUF that it is for; half: in float16; taught_by: the name of the chat
    template (app/llama/styles.py): engines refuse what another one taught; None: nothing is known of it.

    Raises InvalidRequest where it does not fit the base, or the base is of a kind that is not known here.
    """
    layout = gguf_names.layout(base)
    shapes = {tensor.name: tuple(int(size) for size in tensor.shape) for tensor in gguf.GGUFReader(base).tensors}
    alpha = max(delta.scale * delta.rank for delta in deltas.values())
    part = path.with_name(f".{path.name}.part")
    writer = gguf.GGUFWriter(str(part), layout.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    if taught_by is not None:
        writer.add_string(TAUGHT_BY, taught_by)
    kind = np.float16 if half else np.float32
    for module, delta in deltas.items():
        name = layout.tensor(module)
        columns, rows = delta.a.shape[1], delta.b.shape[0]
        if name not in shapes and name == "output.weight":
            message = f"{base.name} has no output layer of its own: {module} cannot have an adapter there."
            raise InvalidRequest(message, "adapter")
        if shapes.get(name) != (columns, rows):
            message = (
                f"{module} of the adapter is {rows} × {columns}; {name} of {base.name} is {_told(shapes.get(name))}."
            )
            raise InvalidRequest(message, "adapter")
        up = layout.ordered(module, delta.b * np.float32(delta.scale * delta.rank / alpha))
        writer.add_tensor(f"{name}.lora_a", np.ascontiguousarray(delta.a, kind))
        writer.add_tensor(f"{name}.lora_b", np.ascontiguousarray(up, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)


def _told(shape: tuple[int, ...] | None) -> str:
    return "not there" if shape is None else " × ".join(str(size) for size in reversed(shape))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("adapter", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--half", action="store_true", help="in float16")
    options = parser.parse_args()
    write(options.out, lora.read(options.adapter), options.base, half=options.half)
