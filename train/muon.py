"""Muon: momentum whose update is made orthogonal, for weight matrices.

(Jordan et al. 2024, kellerjordan.github.io/posts/muon.)
Everything that is no matrix, and the embedding, belongs to another optimiser.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, from the reference above
STEPS = 5


def orthogonal(stack: Tensor) -> Tensor:
    """The nearest orthogonal matrices, roughly: singular values end between 0.7 and 1.2. stack: [n, rows, columns]."""
    a, b, c = COEFFICIENTS
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.mT if tall else stack
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    turned: Tensor = x.mT if tall else x
    return turned


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, one stacked computation for all matrices of a shape."""

    def __init__(
        self, params: Iterable[Tensor], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure: nothing is evaluated again
        """Apply the gradients."""
        assert closure is None
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    shapes[weight.shape].append(weight)
            for shape, weights in shapes.items():
                updates = torch.stack([self._momentum(weight, group["momentum"]) for weight in weights])
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for weight, update in zip(weights, orthogonal(updates), strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)

    def _momentum(self, weight: Tensor, momentum: float) -> Tensor:
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        assert weight.grad is not None
        state["momentum"].lerp_(weight.grad, 1 - momentum)
        blended: Tensor = weight.grad.lerp(state["momentum"], momentum)
        return blended
