"""Small models of transformers' own classes, of random weights, and the same weights as a GGUF.

The tests' own converter: what the architectures need, and no more. The vocabulary is that of gguf_factory.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
import transformers
from gguf_factory import _add_vocabulary, vocabulary

WIDTH, LAYERS, HEADS, KV_HEADS, HIDDEN, WINDOW, THETA = 64, 2, 4, 2, 96, 512, 10_000.0


class Kind(NamedTuple):
    """An architecture: transformers' configuration, GGUF's name, whether llama.cpp rotates pairs."""

    config: str
    gguf: str
    paired: bool
    extras: Mapping[str, Any] = MappingProxyType({})


KINDS = {
    "llama": Kind("LlamaConfig", "llama", paired=True),
    "mistral": Kind("MistralConfig", "llama", paired=True, extras={"sliding_window": None}),
    "ministral3": Kind("Ministral3Config", "mistral3", paired=True, extras={"sliding_window": None}),
    "qwen2": Kind("Qwen2Config", "qwen2", paired=False),
    "qwen3": Kind("Qwen3Config", "qwen3", paired=False),
}


def network(kind: str, *, seed: int = 0, tied: bool = False) -> Any:
    """A model of random weights, as it is for inference."""
    torch.manual_seed(seed)
    rope = {"rope_type": "default", "rope_theta": THETA}
    if kind == "ministral3":
        rope |= {"llama_4_scaling_beta": 0.0, "original_max_position_embeddings": WINDOW}
    config = getattr(transformers, KINDS[kind].config)(
        vocab_size=len(vocabulary()[0]),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=WIDTH // HEADS,
        intermediate_size=HIDDEN,
        max_position_embeddings=WINDOW,
        rope_parameters=rope,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        initializer_range=0.15,
        **KINDS[kind].extras,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, weight in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):  # all alike at first, which would hide a mistake
            torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.1)
    return model.eval()


def write(path: Path, kind: str, model: Any, *, dtype: gguf.GGMLQuantizationType) -> Path:
    """The weights as a GGUF; norms and biases stay float32."""
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == KINDS[kind].gguf)
    writer = gguf.GGUFWriter(path, KINDS[kind].gguf)
    writer.add_name(f"a random {kind}")
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(WIDTH // HEADS)
    writer.add_value_length(WIDTH // HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(THETA)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(vocabulary()[0]))
    _add_vocabulary(writer, None)
    table = gguf.get_tensor_name_map(arch, LAYERS)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        values = weight.float().numpy()
        if KINDS[kind].paired and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = HEADS if "q_proj" in name else KV_HEADS
            values = values.reshape(heads, 2, -1, WIDTH).swapaxes(1, 2).reshape(values.shape)
        target = table.get_name(name, try_suffixes=(".weight", ".bias"))
        if values.ndim == 1:
            writer.add_tensor(target, values)
        else:
            data = gguf.quants.quantize(np.ascontiguousarray(values), dtype)
            writer.add_tensor(target, data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
