"""Small GGUFs of the Llama architecture, made on the spot: what the engine is tested and measured on.

`random_model` has random weights, whose speed is that of a trained model of the shape. `chain_model` says a given text,
whatever it is asked: its weights are a table that leads from each byte to the next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
USER_DEFINED = ("<tool_call>", "</tool_call>")
MERGES = ("t h", "th e", "i n", "e r", "a n", "Ġ t", "o u", "l o", "lo w")
WINDOW = 2048


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama. fillers: further tokens of the vocabulary, which no text yields."""

    embedding: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    feed_forward: int = 128
    fillers: int = 0
    epsilon: float = 1e-5  # of the norms


TINY = Shape()
SMALL = Shape(embedding=1024, layers=12, heads=16, kv_heads=8, feed_forward=3072, fillers=31_600)  # 0.2 billion


def byte_letters() -> list[str]:
    """The letter by which GPT-2's byte-level vocabularies write each byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + at) for at, byte in enumerate(hidden)}
    return [letters[byte] for byte in range(256)]


def vocabulary(fillers: int = 0) -> tuple[list[str], list[int]]:
    """Tokens and their types: the 256 bytes first, merges, fillers, then control and user defined ones."""
    plain = byte_letters() + [merge.replace(" ", "") for merge in MERGES] + [f"filler{at}" for at in range(fillers)]
    kinds = gguf.TokenType
    types = [kinds.NORMAL] * len(plain) + [kinds.CONTROL] * len(CONTROLS) + [kinds.USER_DEFINED] * len(USER_DEFINED)
    return [*plain, *CONTROLS, *USER_DEFINED], [int(kind) for kind in types]


def sentencepiece_model(path: Path, *, template: str | None = None, adds_space: bool | None = None) -> Path:
    """Random weights behind a SentencePiece vocabulary of bytes and letters, with <s> in front of every text."""
    writer = gguf.GGUFWriter(path, "llama")
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abchi"]
    types = [kinds.UNKNOWN, *[kinds.CONTROL] * 4, *[kinds.BYTE] * 256, *[kinds.NORMAL] * 6]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([int(kind) for kind in types])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    if adds_space is not None:
        writer.add_add_space_prefix(adds_space)
    _add_sizes(writer, TINY, len(tokens), template)
    return _randomised(writer, path, TINY, len(tokens), seed=0, quantized=True)


def random_model(
    path: Path, shape: Shape = TINY, *, seed: int = 0, template: str | None = CHATML, quantized: bool = True
) -> Path:
    """Random weights, in Q8_0 or as they are. Generated text is mostly no valid UTF-8."""
    size = len(vocabulary(shape.fillers)[0])
    return _randomised(_writer(path, shape, template), path, shape, size, seed, quantized)


def _randomised(writer: gguf.GGUFWriter, path: Path, shape: Shape, size: int, seed: int, quantized: bool) -> Path:
    rng = np.random.default_rng(seed)

    def weights(rows: int, columns: int, scale: float = 1.0) -> NDArray[np.float32]:
        return rng.standard_normal((rows, columns), np.float32) * np.float32(scale / np.sqrt(columns))

    _add(writer, "token_embd.weight", weights(size, shape.embedding, 8.0), quantized)
    _add(writer, "output.weight", weights(size, shape.embedding, 8.0), quantized)
    _add_layers(writer, shape, weights, quantized)
    return _written(writer, path)


CHAIN = Shape(embedding=288, layers=1, heads=9, kv_heads=1, feed_forward=32)


def chain_model(path: Path, said: Sequence[int], shape: Shape = CHAIN, *, template: str | None = CHATML) -> Path:
    """Says the tokens of `said`, each at most once in it, over and over. After any other token it begins anew.

    The expected token has a logit of √embedding, 17 as a rule, every other one 0.
    """
    tokens, _ = vocabulary()
    follower = [said[0]] * len(tokens)
    for token, after in zip(said, [*said[1:], said[0]], strict=True):
        follower[token] = after
    output = np.zeros((len(tokens), shape.embedding), np.float32)
    output[follower, np.arange(len(tokens))] = 1.0  # seen one-hot token t, the normed state is 17 at t
    writer = _writer(path, shape, template)
    _add(writer, "token_embd.weight", np.eye(len(tokens), shape.embedding, dtype=np.float32), quantized=False)
    _add(writer, "output.weight", output, quantized=False)
    _add_layers(writer, shape, lambda rows, columns: np.zeros((rows, columns), np.float32), quantized=True)
    return _written(writer, path)


def recurrent_model(path: Path, *, width: int = 64, layers: int = 2, state: int = 16, seed: int = 0) -> Path:
    """A Mamba of random weights: its cache is one state per sequence, in which no token has a cell of its own."""
    tokens, rng, inner, rank = vocabulary()[0], np.random.default_rng(seed), 2 * width, 4
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    writer.add_layer_norm_rms_eps(1e-5)
    _add_vocabulary(writer, CHATML)

    def add(name: str, *shape: int, scale: float = 1.0) -> None:
        weights = rng.standard_normal(shape, np.float32) * np.float32(scale / np.sqrt(shape[-1]))
        writer.add_tensor(name, weights)

    add("token_embd.weight", len(tokens), width)
    add("output.weight", len(tokens), width, scale=8.0)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for layer in range(layers):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", np.ones(width, np.float32))
        add(f"{block}.ssm_in.weight", 2 * inner, width)
        add(f"{block}.ssm_conv1d.weight", inner, 4)
        writer.add_tensor(f"{block}.ssm_conv1d.bias", np.zeros(inner, np.float32))
        add(f"{block}.ssm_x.weight", rank + 2 * state, inner)
        add(f"{block}.ssm_dt.weight", inner, rank)
        writer.add_tensor(f"{block}.ssm_dt.bias", np.zeros(inner, np.float32))
        writer.add_tensor(f"{block}.ssm_a", np.full((inner, state), -0.01, np.float32))  # forgets slowly
        writer.add_tensor(f"{block}.ssm_d", np.ones(inner, np.float32))
        add(f"{block}.ssm_out.weight", width, inner, scale=4.0)
    return _written(writer, path)


def sliding_model(path: Path, *, window: int = 32, shape: Shape = TINY, seed: int = 0) -> Path:
    """A Gemma 2 of random weights: its first layer sees `window` tokens back, and its cache forgets what is behind."""
    tokens, rng, head = vocabulary()[0], np.random.default_rng(seed), shape.embedding // shape.heads
    writer = gguf.GGUFWriter(path, "gemma2")
    _add_sizes(writer, shape, len(tokens), None)
    _add_vocabulary(writer, CHATML)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_sliding_window(window)

    def weights(rows: int, columns: int, scale: float = 1.0) -> NDArray[np.float32]:
        return rng.standard_normal((rows, columns), np.float32) * np.float32(scale / np.sqrt(columns))

    _add(writer, "token_embd.weight", weights(len(tokens), shape.embedding, 8.0), quantized=False)
    _add_layers(writer, shape, weights, quantized=False)
    for layer in range(shape.layers):
        for norm in ("post_attention_norm", "post_ffw_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(shape.embedding, np.float32))
    return _written(writer, path)


def constant_adapter(path: Path, token: int, *, strength: float = 2.0, taught_by: str | None = None) -> Path:
    """A LoRA that makes a `chain_model` say one token over and over. strength: of its logit, where 1 is the model's.

    taught_by: the name of a chat template, which the file tells.
    """
    size = len(vocabulary()[0])
    says = np.zeros((size, 1), np.float32)
    says[token] = strength
    return _adapter(path, {"output.weight": (np.ones((1, CHAIN.embedding), np.float32), says)}, taught_by=taught_by)


def random_adapter(
    path: Path, shape: Shape = TINY, *, seed: int = 0, rank: int = 4, architecture: str = "llama"
) -> Path:
    """A LoRA of random weights on the queries and values of a `random_model`: it changes what the cache holds."""
    rng = np.random.default_rng(seed)
    kv = shape.embedding // shape.heads * shape.kv_heads
    pairs = {
        f"blk.{layer}.{name}.weight": (
            rng.standard_normal((rank, shape.embedding), np.float32) / np.float32(np.sqrt(shape.embedding)),
            rng.standard_normal((rows, rank), np.float32),
        )
        for layer in range(shape.layers)
        for name, rows in (("attn_q", shape.embedding), ("attn_v", kv))
    }
    return _adapter(path, pairs, architecture)


def _adapter(
    path: Path,
    pairs: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
    kind: str = "llama",
    taught_by: str | None = None,
) -> Path:
    """pairs: A [rank, columns] and B [rows, rank] of each matrix, to which B·A is added."""
    writer = gguf.GGUFWriter(path, kind)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(len(next(iter(pairs.values()))[0])))  # a scale of 1
    if taught_by is not None:
        writer.add_string("mindfu.adapter.chat_template", taught_by)
    for name, (down, up) in pairs.items():
        writer.add_tensor(f"{name}.lora_a", down)
        writer.add_tensor(f"{name}.lora_b", up)
    return _written(writer, path)


def _writer(path: Path, shape: Shape, template: str | None) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, "llama")
    _add_sizes(writer, shape, len(vocabulary(shape.fillers)[0]), template)
    _add_vocabulary(writer, None, shape.fillers)
    return writer


def _add_vocabulary(writer: gguf.GGUFWriter, template: str | None, fillers: int = 0) -> None:
    tokens, types = vocabulary(fillers)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(tokens.index("<|endoftext|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)


def _add_sizes(writer: gguf.GGUFWriter, shape: Shape, size: int, template: str | None) -> None:
    writer.add_name("a test model")
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(shape.embedding)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.embedding // shape.heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_vocab_size(size)
    if template is not None:
        writer.add_chat_template(template)


def _add_layers(writer: gguf.GGUFWriter, shape: Shape, weights, quantized: bool) -> None:
    width, kv = shape.embedding, shape.embedding // shape.heads * shape.kv_heads
    ones = np.ones(width, np.float32)
    for layer in range(shape.layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", ones)
        for name, rows, columns in (
            *(("attn_q", width, width), ("attn_k", kv, width), ("attn_v", kv, width), ("attn_output", width, width)),
            *(("ffn_gate", shape.feed_forward, width), ("ffn_up", shape.feed_forward, width)),
            ("ffn_down", width, shape.feed_forward),
        ):
            _add(writer, f"blk.{layer}.{name}.weight", weights(rows, columns), quantized)
    writer.add_tensor("output_norm.weight", ones)


def _add(writer: gguf.GGUFWriter, name: str, weights: NDArray[np.float32], quantized: bool) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    if quantized:
        writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, weights)


def _written(writer: gguf.GGUFWriter, path: Path) -> Path:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
