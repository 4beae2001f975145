"""How much memory a tuning run takes, before it starts: weights, adapter, optimiser, activations. Pure arithmetic.

Weights and optimiser are counted exactly. Activations with gradient checkpointing are the inputs of all layers, and
what is at work on them: one layer that is computed again, or the output layer, which makes logits tile by tile. What a
layer keeps was fitted to the allocations of real runs (benchmarks/training.py --memory), and docs/loop.md says how far
off other shapes are. Not counted: what a GPU's driver and kernels take for themselves, for which RUNTIME_BYTES stands.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from app.errors import InvalidRequest
from train.recipe import Recipe

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight: 4 bits, an 8-bit scale for 64, and 32 bits for 256 scales
BF16, FP32 = 2, 4
ADAM8_BYTES = 2 + 2 * 4 / 256  # two moments in 8 bits, and 32 bits for 256 of each
RUNTIME_BYTES = int(0.7 * 2**30)  # CUDA's context and cuBLAS's workspace, of the order that NVIDIA's tools show

LAYER_BYTES = {"width": 30.5, "queries": 6.9, "keys": 4.5, "hidden": 12.8}
"""Of a token in a layer that is computed again and differentiated, for each number of the residual stream, of queries,
of keys (and as many values), and of the feed-forward. Fitted, see above."""
SMALL_BYTES = 3_700_000  # whatever the shape; fitted, too

TILE_TOKENS, TILE_WORDS = 4096, 32_768  # of logits that TRL makes at a time (trl/kernels/chunked_logprob.py)
CPU_TILE_BYTES = (
    33  # of a logit where there is no Triton: that kernel in PyTorch, at its worst line (eight numbers and a flag)
)


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
    adapter: int
    optimiser: int
    kept: int  # the inputs of all layers, and the gradients of what is trained
    working: int  # one layer, computed again, or a tile of logits: whichever takes more
    runtime: int

    @property
    def tensors(self) -> int:
        """What PyTorch allocates."""
        return sum(self) - self.runtime

    @property
    def total(self) -> int:
        return sum(self)


def plan(shape: Shape, recipe: Recipe, *, gpu: bool = True) -> Plan:
    """The memory of one worker, for Llama-like decoders in bf16, see the head of this module.

    Raises InvalidRequest for recipes that learn from preferences: nobody has measured those.
    """
    if recipe.method == "dpo":
        raise InvalidRequest(
            "Plans are made for method: sft. DPO takes more: two answers, and the base's, too.", "method"
        )
    tokens = recipe.batch * recipe.window
    linear = sum(layer.weights for layer in shape.linear())
    others = shape.parameters() - linear
    if recipe.adapter is None:
        trained, weights = shape.parameters(), shape.parameters() * FP32
    else:
        trained = adapter_weights(shape, recipe)
        weights = int(linear * (NF4_BYTES if recipe.quantise else BF16) + others * BF16)
    inputs = tokens * shape.width * BF16 * shape.layers if recipe.gradient_checkpointing else 0
    gradients = trained * FP32
    return Plan(
        weights=weights,
        adapter=0 if recipe.adapter is None else trained * FP32,
        optimiser=int(trained * ADAM8_BYTES),
        # of one pass, gradients come as inputs go; of a further one, they are there from its begin
        kept=max(inputs, gradients) if recipe.accumulation == 1 else inputs + gradients,
        working=max(
            layer_bytes(shape, recipe) * (1 if recipe.gradient_checkpointing else shape.layers),
            head_bytes(shape, tokens, gpu=gpu),
        ),
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
        + LAYER_BYTES["queries"] * queries
        + LAYER_BYTES["keys"] * keys
        + LAYER_BYTES["hidden"] * shape.hidden
    )
    return int(kept) + SMALL_BYTES + (shape.width * shape.hidden * BF16 if recipe.quantise else 0)


def head_bytes(shape: Shape, tokens: int, *, gpu: bool) -> int:
    """What the output layer takes: a tile of logits, and the gradient of its input."""
    tile = min(tokens, TILE_TOKENS)
    kernel = 0 if gpu else tile * min(shape.vocabulary, TILE_WORDS) * CPU_TILE_BYTES
    return tile * TILE_WORDS * BF16 + tokens * shape.width * (FP32 + BF16) + kernel
