"""The plots of an evaluation, as SVG files beside its report: what changed, how training went, how long answers took.

Written with matplotlib, without fonts and without a date, so that the same numbers make the same file.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train import lines, stages
from train.results import Judged, Results
from train.scores import Interval
from train.serving import Said

BETTER, WORSE, SAME = "#17692e", "#a31515", "#555555"
COLOURS = {"base": "#7a7a7a", "tuned": "#1f5fa8"}


def write(folder: Path, results: Results, times: Mapping[str, Sequence[Said]], history: Path) -> None:
    """Write plot-<name>.svg for each that there is something for. history: of the training, JSON lines."""
    for name, judged in results.sets.items():
        stages.write(folder / f"plot-{name}.svg", changes(name, judged))
    if any(one.seconds for said in times.values() for one in said):
        stages.write(folder / "plot-latency.svg", latency(times))
    if history.exists() and (drawn := training([json.loads(text) for text in lines.texts(history)])):
        stages.write(folder / "plot-training.svg", drawn)


def changes(name: str, judged: Judged) -> str:
    """The change of each measure with its interval: right of zero is better."""
    bars: list[tuple[str, Interval]] = [("loss (negated)", judged.gain)]
    bars += [(metric, told.change) for metric, told in judged.metrics.items()]
    if judged.preference and judged.preference.score:
        bars.append(("preference", judged.preference.score))
    axes = _axes(1.0 + 0.35 * len(bars))
    for place, (_, bar) in enumerate(bars):
        colour = BETTER if bar.low > 0 else WORSE if bar.high < 0 else SAME
        axes.plot([bar.low, bar.high], [place, place], color=colour, linewidth=3)
        axes.plot([bar.mean], [place], "o", color=colour)
    axes.axvline(0, color="#999999", linewidth=1)
    axes.set_yticks(range(len(bars)), [label for label, _ in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlabel(f"change on the set {name}, 95 % intervals; right of zero is better")
    return _svg(axes, f"changes-{name}")


def latency(times: Mapping[str, Sequence[Said]]) -> str:
    """Which share of the answers had ended after how long."""
    axes = _axes(3.0)
    for model, said in times.items():
        seconds = sorted(one.seconds for one in said if one.seconds)
        shares = [(place + 1) / len(seconds) for place in range(len(seconds))]
        axes.step(seconds, shares, where="post", label=model, color=COLOURS[model])
    axes.set_xlabel("seconds until an answer had ended, several at a time")
    axes.set_ylabel("share of the answers")
    axes.legend()
    return _svg(axes, "latency")


def training(history: Sequence[Mapping[str, float]]) -> str | None:
    """The losses over the steps. None where the history has none."""
    axes, drawn = _axes(3.0), False
    for key, label, colour in (("loss", "training", COLOURS["base"]), ("eval_loss", "validation", COLOURS["tuned"])):
        points = [(row["step"], row[key]) for row in history if "step" in row and key in row]
        if points:
            drawn = True
            axes.plot(*zip(*points, strict=True), marker=".", label=label, color=colour)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    if drawn:
        axes.legend()
    return _svg(axes, "training") if drawn else None


def _axes(height: float) -> Axes:
    """height: inches."""
    axes: Axes = Figure(figsize=(7.0, height), layout="constrained").add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _svg(axes: Axes, name: str) -> str:
    """As SVG alone, without XML's prologue, so that it can stand in HTML. name: keeps its ids apart from others'."""
    out = io.StringIO()
    figure = axes.get_figure(root=True)
    assert figure is not None
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    return text[text.index("<svg") :]
