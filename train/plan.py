"""How much memory a tuning run takes, before it starts: weights, adapter, optimiser, activations. Pure arithmetic.

Weights and optimiser are counted exactly. Activations with gradient checkpointing are the inputs of all layers, and
what one layer keeps while it is computed again; the numbers of tensors in it were fitted to the allocations of real
runs (benchmarks/training.py --memory), and docs/loop.md says how far off other shapes are. Not counted: what a GPU's
driver and kernels take for themselves, for which RUNTIME_BYTES stands.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from app.errors import InvalidRequest
from train.recipe import Recipe

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight: 4 bits, an 8-bit scale for 64, and 32 bits for 256 scales
BF16, FP32 = 2, 4
ADAM8_BYTES = 2 + 2 * 4 / 256  # two moments in 8 bits, and 32 bits for 256 of each
RUNTIME_BYTES = int(0.7 * 2**30)  # CUDA's context and cuBLAS's workspace, of the order that NVIDIA's tools show

LAYER_BYTES = {"width": 24.0, "attention": 8.0, "hidden": 16.0}
"""Of a token in a layer that is computed again and differentiated, for each number of the residual stream, of queries,
keys and values, and of the feed-forward. Fitted, see above."""


class Layer(NamedTuple):
    """A linear layer, and how many of its kind a model has."""

    name: str
    inputs: int
    outputs: int
    copies: int

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs * self.copies


class Shape(NamedTuple):
    """What a decoder looks like."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    groups: int  # heads of keys and values
    head: int
    hidden: int  # width of the feed-forward
    tied: bool  # the embedding is the output layer, too

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """From a config.json. Of a model with a vision tower, the text's. Raises InvalidRequest for other kinds."""
        told = config.get("text_config") or config
        if "num_local_experts" in told or "num_experts" in told or "n_routed_experts" in told:
            raise InvalidRequest("Plans are made for dense models; this one is a mixture of experts.", "model")
        try:
            heads = int(told["num_attention_heads"])
            width = int(told["hidden_size"])
            return cls(
                vocabulary=int(told["vocab_size"]),
                width=width,
                layers=int(told["num_hidden_layers"]),
                heads=heads,
                groups=int(told.get("num_key_value_heads") or heads),
                head=int(told.get("head_dim") or width // heads),
                hidden=int(told["intermediate_size"]),
                tied=bool(told.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
            )
        except KeyError as error:
            raise InvalidRequest(f"Its config.json has no {error}: this is no Llama-like decoder.", "model") from error

    def linear(self) -> tuple[Layer, ...]:
        """The linear layers but the output layer: those that are quantised, and get adapters."""
        queries, keys = self.heads * self.head, self.groups * self.head
        return (
            Layer("q_proj", self.width, queries, self.layers),
            Layer("k_proj", self.width, keys, self.layers),
            Layer("v_proj", self.width, keys, self.layers),
            Layer("o_proj", queries, self.width, self.layers),
            Layer("gate_proj", self.width, self.hidden, self.layers),
            Layer("up_proj", self.width, self.hidden, self.layers),
            Layer("down_proj", self.hidden, self.width, self.layers),
        )

    def parameters(self) -> int:
        """All weights."""
        embeddings = self.vocabulary * self.width * (1 if self.tied else 2)
        return embeddings + sum(layer.weights for layer in self.linear()) + (2 * self.layers + 1) * self.width


DEVSTRAL = Shape(131_072, 5120, 40, 32, 8, 128, 32_768, tied=False)
KNOWN: Mapping[str, Shape] = {"mistralai/Devstral-Small-2-24B-Instruct-2512": DEVSTRAL, "devstral-small-2": DEVSTRAL}
"""Shapes that can be planned for without a download: the text tower."""


class Plan(NamedTuple):
    """Bytes that a run takes, by what for."""

    weights: int
    adapter: int  # with gradients
    optimiser: int
    checkpoints: int  # the inputs of all layers
    layer: int  # one layer, computed again
    runtime: int

    @property
    def tensors(self) -> int:
        """What PyTorch allocates."""
        return sum(self) - self.runtime

    @property
    def total(self) -> int:
        return sum(self)


def plan(shape: Shape, recipe: Recipe) -> Plan:
    """The memory of one worker. Exact for nothing but Llama-like decoders in bf16, see the head of this module."""
    tokens = recipe.batch * recipe.window
    linear = sum(layer.weights for layer in shape.linear())
    others = shape.parameters() - linear
    if recipe.adapter is None:
        trained, weights = shape.parameters(), shape.parameters() * FP32
    else:
        trained = adapter_weights(shape, recipe)
        weights = int(linear * (NF4_BYTES if recipe.quantise else BF16) + others * BF16)
    checkpoints = tokens * shape.width * BF16 * shape.layers
    return Plan(
        weights=weights,
        adapter=trained * FP32 * (1 if recipe.adapter is None else 2),
        optimiser=int(trained * ADAM8_BYTES),
        checkpoints=checkpoints if recipe.gradient_checkpointing else 0,
        layer=layer_bytes(shape, recipe) * (1 if recipe.gradient_checkpointing else shape.layers),
        runtime=RUNTIME_BYTES,
    )


def adapter_weights(shape: Shape, recipe: Recipe) -> int:
    """Of the adapter."""
    adapter = recipe.adapter
    assert adapter is not None
    targets = {layer.name for layer in shape.linear()} if adapter.targets == "all-linear" else set(adapter.targets)
    chosen = (layer for layer in shape.linear() if layer.name in targets)
    return sum(adapter.rank * (layer.inputs + layer.outputs) * layer.copies for layer in chosen)


def layer_bytes(shape: Shape, recipe: Recipe) -> int:
    """What one layer takes while its gradients are computed, its largest weight as bf16 included."""
    tokens = recipe.batch * recipe.window
    queries, keys = shape.heads * shape.head, shape.groups * shape.head
    kept = tokens * (
        LAYER_BYTES["width"] * shape.width
        + LAYER_BYTES["attention"] * (queries + 2 * keys)
        + LAYER_BYTES["hidden"] * shape.hidden
    )
    return int(kept) + (shape.width * shape.hidden * BF16 if recipe.quantise else 0)
