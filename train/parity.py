"""Whether serving changed as training did: the change of each token's log-probability from base to tuned, both ways.

Absolute values differ by quantisation; the changes hardly do. Where they differ much, a conversion is broken, a
template or an end token is wrong, or the served adapter is not the trained one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.messages import Strict
from train.lessons import Lesson

Array = NDArray[np.float32]


class Parity(Strict):
    """Of the learnt tokens. served and trained: mean change, nats; difference: of the two changes, absolute."""

    tokens: int
    served: float
    trained: float
    mean_difference: float
    highest_difference: float
    correlation: float
    problems: tuple[str, ...] = ()  # prompts and endings that differ

    @property
    def relative(self) -> float:
        """The mean difference as a share of how much training changed: 0 is perfect, 1 is unrelated."""
        return self.mean_difference / max(abs(self.trained), 1e-6)


def compare(
    served: tuple[Sequence[Array], Sequence[Array]],
    trained: tuple[Sequence[Array], Sequence[Array]],
    problems: Sequence[str] = (),
) -> Parity:
    """served, trained: log-probabilities by base and by tuned, lesson by lesson."""
    changes = [np.concatenate(tuned) - np.concatenate(base) for base, tuned in (served, trained)]
    apart = np.abs(changes[0] - changes[1])
    moved = min(float(change.std()) for change in changes) > 0
    return Parity(
        tokens=len(apart),
        served=float(changes[0].mean()),
        trained=float(changes[1].mean()),
        mean_difference=float(apart.mean()),
        highest_difference=float(apart.max()),
        correlation=float(np.corrcoef(changes[0], changes[1])[0, 1]) if moved else float(apart.max() == 0),
        problems=tuple(problems),
    )


def by_pytorch(base: Path, adapter: Path | None, lessons: Sequence[Lesson]) -> tuple[list[Array], list[Array]]:
    """The log-probabilities of the learnt tokens as the training stack has them: of the base, and of the tuned model.

    base: a folder as transformers reads it, loaded in bfloat16 on a GPU and in float32 elsewhere. adapter: PEFT's; None
    takes the base for both.
    """
    import torch
    import transformers

    gpu = torch.cuda.is_available()
    place = {"device_map": "cuda"} if gpu else {}
    dtype = torch.bfloat16 if gpu else torch.float32
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=dtype, **place).eval()

    def scored(model: Any) -> list[Array]:
        found = []
        for lesson in lessons:
            tokens = torch.tensor([lesson.tokens], device=model.device)
            with torch.no_grad():
                likely = model(tokens).logits[0, :-1].float().log_softmax(-1)
            chosen = likely.gather(1, tokens[0, 1:, None])[:, 0].cpu().numpy()
            found.append(chosen[np.asarray(lesson.learnt[1:], bool)])
        return found

    if adapter is None:
        before = scored(model)
        return before, before
    import peft

    tuned = peft.PeftModel.from_pretrained(model, adapter).eval()
    with tuned.disable_adapter():
        before = scored(tuned)
    return before, scored(tuned)
