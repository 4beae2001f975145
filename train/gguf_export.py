"""Our own GGUF export and import of a Llama with a byte-level BPE tokenizer.

llama.cpp's converter is not in its Python wheel and knows no tokenizer but published ones. Matrices become Q8_0, norms
stay float32. llama.cpp's Llama rotates neighbouring pairs where transformers rotates halves: queries and keys are
permuted on the way out, and back on the way in.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from train import tokenizer as vocabulary
from train.model import Shape

Array = npt.NDArray[np.float32]
ARCHITECTURE = "llama"
Q8_0_BLOCK = 32  # values that share a scale: rows must be whole blocks


class Card(NamedTuple):
    """What the file says about itself."""

    name: str
    description: str
    licence: str
    template: str


def interleaved(weight: Array, heads: int) -> Array:
    """Rows of each head from transformers' order (all first halves, all second halves) to llama.cpp's (pairs)."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def halved(weight: Array, heads: int) -> Array:
    """The way back from `interleaved`."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, weights: Mapping[str, Tensor], *, shape: Shape, tokenizer: Tokenizer, card: Card) -> None:
    """Write a model. weights: with transformers' names, the output layer tied and left out."""
    writer = gguf.GGUFWriter(str(path), ARCHITECTURE)
    _metadata(writer, shape, card)
    _tokens(writer, tokenizer, card.template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.layers)
    for name, weight in weights.items():
        target = names.get_name(name, try_suffixes=(".weight",))
        if target is None:
            raise KeyError(name)
        values: Array = weight.detach().float().numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = interleaved(values, shape.heads)
        if values.ndim == 1:
            writer.add_tensor(target, values)
            continue
        assert values.shape[1] % Q8_0_BLOCK == 0
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(target, gguf.quants.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _metadata(writer: gguf.GGUFWriter, shape: Shape, card: Card) -> None:
    writer.add_name(card.name)
    writer.add_description(card.description)
    writer.add_license(card.licence)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.window)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_freq_base(shape.theta)
    writer.add_rope_dimension_count(shape.head)


def _tokens(writer: gguf.GGUFWriter, tokenizer: Tokenizer, template: str) -> None:
    size = tokenizer.get_vocab_size()
    texts = [tokenizer.id_to_token(token) for token in range(size)]
    special = set(vocabulary.SPECIAL)
    kinds = [gguf.TokenType.CONTROL if text in special else gguf.TokenType.NORMAL for text in texts]
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name of byte-level BPE
    writer.add_tokenizer_pre(vocabulary.PRE_TOKENIZER)
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(vocabulary.merges(tokenizer))
    writer.add_bos_token_id(vocabulary.number(tokenizer, vocabulary.END_OF_TEXT))
    writer.add_pad_token_id(vocabulary.number(tokenizer, vocabulary.END_OF_TEXT))
    writer.add_eos_token_id(vocabulary.number(tokenizer, vocabulary.TURN_END))
    writer.add_add_bos_token(False)
    writer.add_chat_template(template)


class Loaded(NamedTuple):
    """A model read back, its matrices as exact as Q8_0 kept them."""

    weights: dict[str, Tensor]
    shape: Shape
    tokenizer: Tokenizer
    card: Card


def read(path: Path) -> Loaded:
    """Read what `write` wrote: the way from the shipped file to fine-tuning."""
    reader = gguf.GGUFReader(path)

    def value(key: str) -> object:
        field = reader.get_field(key)
        if field is None:
            raise KeyError(key)
        return field.contents()

    def number(key: str) -> int:
        return int(str(value(f"{ARCHITECTURE}.{key}")))

    shape = Shape(
        vocabulary=number("vocab_size"),
        width=number("embedding_length"),
        layers=number("block_count"),
        heads=number("attention.head_count"),
        hidden=number("feed_forward_length"),
        window=number("context_length"),
        theta=float(str(value("llama.rope.freq_base"))),
        epsilon=round(float(str(value("llama.attention.layer_norm_rms_epsilon"))), 9),
    )
    names = {f"{target}.weight": name for name, target in _names(shape).items()}
    weights = {}
    for tensor in reader.tensors:
        name = names[tensor.name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = halved(values, shape.heads)
        weights[name] = torch.from_numpy(np.array(values, dtype=np.float32))
    texts, merges = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.merges")
    assert isinstance(texts, list)
    assert isinstance(merges, list)
    card = Card(
        *(
            str(value(key))
            for key in ("general.name", "general.description", "general.license", "tokenizer.chat_template")
        )
    )
    return Loaded(weights, shape, vocabulary.rebuild(texts, merges), card)


def _names(shape: Shape) -> dict[str, str]:
    """Transformers' parameter name → GGUF's tensor name without its ending."""
    parts = [f"self_attn.{part}_proj" for part in "qkvo"] + [f"mlp.{part}_proj" for part in ("gate", "up", "down")]
    parts += ["input_layernorm", "post_attention_layernorm"]
    modules = ["model.embed_tokens", "model.norm"]
    modules += [f"model.layers.{layer}.{part}" for layer in range(shape.layers) for part in parts]
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.layers)
    return {f"{module}.weight": str(table.get_name(module)) for module in modules}
