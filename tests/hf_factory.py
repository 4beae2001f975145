"""The models of gguf_factory as transformers saves them, and their adapters as PEFT writes them: for vLLM."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf_factory import CHAIN, CHATML, CONTROLS, MERGES, USER_DEFINED, WINDOW, Shape, byte_letters, vocabulary
from numpy.typing import NDArray
from safetensors.numpy import save_file


def chain_folder(folder: Path, said: Sequence[int], shape: Shape = CHAIN, *, template: str = CHATML) -> Path:
    """The same as `chain_model`: says the tokens of `said`, over and over."""
    tokens, _ = vocabulary()
    follower = [said[0]] * len(tokens)
    for token, after in zip(said, [*said[1:], said[0]], strict=True):
        follower[token] = after
    output = np.zeros((len(tokens), shape.embedding), np.float32)
    output[follower, np.arange(len(tokens))] = 1.0
    width, kv = shape.embedding, shape.embedding // shape.heads * shape.kv_heads
    sizes = {
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width),
        "self_attn.o_proj": (width, width), "mlp.gate_proj": (shape.feed_forward, width),
        "mlp.up_proj": (shape.feed_forward, width), "mlp.down_proj": (width, shape.feed_forward),
    }  # fmt: skip
    weights: dict[str, NDArray[np.float32]] = {
        "model.embed_tokens.weight": np.eye(len(tokens), width, dtype=np.float32),
        "lm_head.weight": output,
        "model.norm.weight": np.ones(width, np.float32),
    }
    for layer in range(shape.layers):
        weights |= {f"model.layers.{layer}.{name}.weight": np.zeros(size, np.float32) for name, size in sizes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{norm}.weight"] = np.ones(width, np.float32)
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", _config(shape, len(tokens)))
    write_tokenizer(folder, template=template)
    return folder


def write_tokenizer(folder: Path, *, template: str | None = CHATML) -> None:
    """tokenizer.json and tokenizer_config.json of gguf_factory's vocabulary."""
    tokens, _ = vocabulary()
    plain = [*byte_letters(), *(merge.replace(" ", "") for merge in MERGES)]
    added = [
        {"id": tokens.index(text), "content": text, "special": text in CONTROLS, "normalized": False,
         "single_word": False, "lstrip": False, "rstrip": False}
        for text in (*CONTROLS, *USER_DEFINED)
    ]  # fmt: skip
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {text: at for at, text in enumerate(plain)}, "merges": list(MERGES)}
    written = {"version": "1.0", "added_tokens": added, "pre_tokenizer": level, "decoder": level, "model": model}
    _write(folder / "tokenizer.json", written)
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": CONTROLS[0], "eos_token": CONTROLS[2]}
    _write(folder / "tokenizer_config.json", named | ({"chat_template": template} if template else {}))


def constant_lora(folder: Path, token: int, *, strength: float = 2.0, rank: int = 1) -> Path:
    """The same as `constant_adapter`: a LoRA that makes a chain model say one token over and over."""
    says = np.zeros((len(vocabulary()[0]), rank), np.float32)
    says[token, 0] = strength
    name = "base_model.model.lm_head"
    folder.mkdir(parents=True)
    weights = {f"{name}.lora_A.weight": np.ones((rank, CHAIN.embedding), np.float32), f"{name}.lora_B.weight": says}
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["lm_head"], "bias": "none"}
    _write(folder / "adapter_config.json", config)
    return folder


def _config(shape: Shape, size: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": size,
        "hidden_size": shape.embedding,
        "intermediate_size": shape.feed_forward,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.embedding // shape.heads,
        "max_position_embeddings": WINDOW,
        "rms_norm_eps": shape.epsilon,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "tie_word_embeddings": False,
        "bos_token_id": size - 5,
        "eos_token_id": size - 3,
        "torch_dtype": "float32",
    }


def _write(file: Path, value: object) -> None:
    file.write_text(json.dumps(value))
