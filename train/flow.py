"""Lines of text through a function, on Ray Data: in parallel on all of a cluster's CPUs, in the order of the files.

A line and what becomes of it travel as JSON text, because columns of messages, calls and schemas have no common type.
Few lines are not worth starting a cluster for (about 10 s): they go through the function here.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from app.messages import Strict
from train import cluster, lines
from train.stages import Work

Row = dict[str, Any]
P = TypeVar("P", bound=Strict)
Function = Callable[[str, Any], Row]
"""A line and the stage's parameters, to something JSON-compatible. A function of a module, so that workers find it."""

FEW_LINES = 20_000  # judging a conversation takes about 5 ms (docs/loop.md)
BATCH = 256


def mapped(files: Sequence[Path], function: Function, parameters: P, work: Work[P]) -> Iterator[Row]:
    """What the function makes of each line, in order. A file that is not there has no lines."""
    there = [file for file in files if file.exists()]
    total = sum(_lines(file) for file in there)
    if total < FEW_LINES:
        for done, text in enumerate(itertools.chain.from_iterable(map(lines.texts, there))):
            if done % BATCH == 0:
                work.progress(done, total)
            yield function(text, parameters)
        return
    with cluster.connected(work.home):
        yield from on_ray(there, function, parameters, work, total)


def on_ray(files: Sequence[Path], function: Function, parameters: P, work: Work[P], total: int) -> Iterator[Row]:
    """The same on the Ray that is connected."""
    import ray.data

    given = parameters.model_dump(mode="json")

    def batch(texts: dict[str, Any]) -> dict[str, list[str]]:
        known = type(parameters).model_validate(given)
        return {"made": [json.dumps(function(text, known)) for text in texts["line"].tolist()]}

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    ray.data.DataContext.get_current().enable_progress_bars = False
    for file in files:
        rows = ray.data.from_items([{"line": text} for text in lines.texts(file)])
        for done, row in enumerate(rows.map_batches(batch, batch_size=BATCH, **cluster.tasks()).iter_rows()):
            if done % BATCH == 0:
                work.progress(done, total)
            yield json.loads(row["made"])


def _lines(file: Path) -> int:
    return sum(1 for _ in lines.texts(file))
