"""A small Llama in plain PyTorch: the demo model's network, with the parameter names of transformers' LlamaForCausalLM.

Grouped queries, biases and dropout are left out on purpose; the embedding is also the output layer.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

COPYING_LAYERS = 2  # at the end, whose attention starts out saying what it attends to


@dataclass(frozen=True, slots=True)
class Shape:
    """What the network looks like. hidden: width of the feed-forward; window: tokens it is served with."""

    vocabulary: int = 6144
    width: int = 160
    layers: int = 5
    heads: int = 5
    hidden: int = 416
    window: int = 4096
    theta: float = 1_000_000.0  # slow enough that half of each head compares content and not position
    epsilon: float = 1e-5

    @property
    def head(self) -> int:
        return self.width // self.heads

    def parameters(self) -> int:
        """Weights, the tied output layer counted once."""
        block = 4 * self.width**2 + 3 * self.width * self.hidden + 2 * self.width
        return self.vocabulary * self.width + self.layers * block + self.width


def rotation(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary positions, each [length, head]: transformers' half-split layout."""
    frequencies = shape.theta ** (-torch.arange(0, shape.head, 2, dtype=torch.float64) / shape.head)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [..., length, head] by the angles of its positions."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.k_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.v_proj = nn.Linear(shape.width, shape.width, bias=False)
        self.o_proj = nn.Linear(shape.width, shape.width, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        """[batch, length, width] → [batch, heads, length, head]."""
        return x.view(*x.shape[:2], self.shape.heads, self.shape.head).transpose(1, 2)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and the rotated queries and keys, which training's pointer loss looks at."""
        q, k = rotate(self.heads(self.q_proj(x)), cos, sin), rotate(self.heads(self.k_proj(x)), cos, sin)
        y = functional.scaled_dot_product_attention(q, k, self.heads(self.v_proj(x)), is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(-2)), q, k


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up_proj = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down_proj = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Block(nn.Module):
    """One layer."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = nn.RMSNorm(shape.width, eps=shape.epsilon)
        self.mlp = FeedForward(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, q, k = self.self_attn(self.input_layernorm(x), cos, sin)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), q, k


class Decoder(nn.Module):
    """Embedding, layers, last norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=shape.epsilon)


@dataclass(frozen=True, slots=True)
class Trace:
    """What a pass leaves behind. hidden: [batch, length, width], normed; states, queries, keys: of each layer."""

    hidden: Tensor
    states: list[Tensor]
    queries: list[Tensor]
    keys: list[Tensor]


class Llama(nn.Module):
    """The network. `trace` runs it, `logits` reads words off chosen positions: all would cost half the time."""

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        cos, sin = rotation(shape, shape.window)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def trace(self, tokens: Tensor, positions: Tensor | None = None) -> Trace:
        """Run tokens [batch, length]. positions: of each, [batch, length] below the window; None: 0, 1, 2, …"""
        if positions is None:
            cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        else:
            cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        x = self.model.embed_tokens(tokens)
        states, queries, keys = [], [], []
        for block in self.model.layers:
            x, q, k = block(x, cos, sin)
            states.append(x)
            queries.append(q)
            keys.append(k)
        return Trace(self.model.norm(x), states, queries, keys)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., width] → [..., vocabulary]."""
        return functional.linear(hidden, self.model.embed_tokens.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits(self.trace(tokens).hidden)


def initialise(network: Llama, *, seed: int) -> None:
    """Start where copying is near.

    Queries resemble keys, so that equal tokens attend to each other from the first step (mimetic initialisation,
    Trockman and Kolter 2023, arXiv:2305.09828); the last layers' values come out of attention as they went in, so that
    what is attended to is what is said. The last norm starts small because the embedding, which is also the output
    layer, starts large enough to be heard through the residual stream.
    """
    generator = torch.Generator().manual_seed(seed)
    shape, weights = network.shape, dict(network.named_parameters())
    with torch.no_grad():
        for name, weight in weights.items():
            if weight.ndim == 2:
                spread = 0.5 if "embed_tokens" in name else 1 / math.sqrt(weight.shape[1])
                weight.normal_(0, spread, generator=generator)
            else:
                weight.fill_(1)
        weights["model.norm.weight"].fill_(2 / math.sqrt(shape.width))
        for layer in range(shape.layers):
            query, key, value, output = (
                weights[f"model.layers.{layer}.self_attn.{part}_proj.weight"] for part in "qkvo"
            )
            query.mul_(0.7).add_(key, alpha=0.7)
            output.mul_(0.3)
            if layer >= shape.layers - COPYING_LAYERS:
                output.copy_(value.T)
            weights[f"model.layers.{layer}.mlp.down_proj.weight"].mul_(0.3)
