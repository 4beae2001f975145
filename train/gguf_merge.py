"""A GGUF with an adapter merged into it, tensor by tensor, so that the tokenizer stays the base's own.

Tensors that the adapter does not touch are copied byte by byte. `quantise` makes Q4_K_M, Q5_K_M or Q8_0 of a GGUF by
llama.cpp's own quantiser. Never more than one tensor is in memory.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import gguf
import llama_cpp.llama_cpp as C  # noqa: N812 — the C API reads like one
import numpy as np

from app.errors import InvalidRequest, Misconfigured
from app.llama.model import library
from train import gguf_names
from train.lora import Delta

Quantisation = Literal["Q4_K_M", "Q5_K_M", "Q8_0"]
QUANTISATIONS: tuple[Quantisation, ...] = get_args(Quantisation)
TYPES: dict[Quantisation, int] = {
    "Q4_K_M": C.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q5_K_M": C.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "Q8_0": C.LLAMA_FTYPE_MOSTLY_Q8_0,
}
kinds = gguf.GGMLQuantizationType
MERGEABLE = (kinds.F32, kinds.F16, kinds.BF16, kinds.Q8_0)  # which are written again with next to no loss


def merge(path: Path, deltas: Mapping[str, Delta], base: Path, template: str | None = None) -> None:
    """Write the base with the adapter in it. template: for chats, in place of the base's own.

    Raises InvalidRequest where the base is too coarse, or does not fit.
    """
    layout, reader = gguf_names.layout(base), gguf.GGUFReader(base)
    changed = {layout.tensor(module): (module, delta) for module, delta in deltas.items()}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    for name, (module, delta) in changed.items():
        if name not in tensors:
            message = f"{base.name} has no tensor {name}, to which {module} of the adapter would be added."
            raise InvalidRequest(message, "adapter")
        _check(base, tensors[name], module, delta)
    part = path.with_name(f".{path.name}.part")
    writer = gguf.GGUFWriter(str(part), layout.architecture)
    own = {gguf.Keys.General.ARCHITECTURE, *([] if template is None else [gguf.Keys.Tokenizer.CHAT_TEMPLATE])}
    if template is not None:
        writer.add_chat_template(template)
    for field in reader.fields.values():
        if field.name not in own and not field.name.startswith("GGUF."):
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        data = tensor.data
        if tensor.name in changed:
            module, delta = changed[tensor.name]
            whole = gguf.quants.dequantize(data, tensor.tensor_type) + layout.ordered(module, delta.matrix())
            data = gguf.quants.quantize(np.ascontiguousarray(whole, np.float32), tensor.tensor_type)
        writer.write_tensor_data(data)
    writer.close()
    part.replace(path)


def quantise(source: Path, target: Path, kind: Quantisation, *, threads: int | None = None) -> None:
    """Make a smaller GGUF of one. threads: None for the CPUs that this process may use. Raises Misconfigured."""
    params = C.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = TYPES[kind], True
    params.nthread = threads or os.cpu_count() or 1
    library().errors.clear()
    part = target.with_name(f".{target.name}.part")
    if C.llama_model_quantize(str(source).encode(), str(part).encode(), params):
        part.unlink(missing_ok=True)
        problem = f"llama.cpp makes no {kind} of {source} ({library().reason()})"
        raise Misconfigured("formats.gguf", problem, "Use another GGUF, or leave the format out.")
    part.replace(target)


def _check(base: Path, tensor: gguf.ReaderTensor, module: str, delta: Delta) -> None:
    columns, rows = (int(size) for size in tensor.shape)
    if (len(delta.b), delta.a.shape[1]) != (rows, columns):
        message = (
            f"{module} of the adapter is {len(delta.b)} × {delta.a.shape[1]}; {tensor.name} is {rows} × {columns}."
        )
        raise InvalidRequest(message, "adapter")
    if tensor.tensor_type not in MERGEABLE:
        message = (
            f"{base.name} holds {tensor.name} as {tensor.tensor_type.name}, too coarse to add an adapter to. Give the "
            f"base's own {', '.join(kind.name for kind in MERGEABLE)} file; it is quantised afterwards."
        )
        raise InvalidRequest(message, "base")
