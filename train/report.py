"""The report of an evaluation: Markdown with plots beside it, and one HTML file with them in it.

The HTML has no scripts, and nothing from elsewhere.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from math import exp
from pathlib import Path
from typing import Any

from train import stages
from train.regression import Outcome
from train.results import Judged, Preference, Results, Speed
from train.scores import Interval

EXAMPLES = 20  # answers that are shown side by side: those that changed most
SHOWN_CHARS = 600
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { border: 1px solid #ccc; padding: .3rem .6rem }
td { vertical-align: top; white-space: pre-wrap; overflow-wrap: anywhere } th { background: #f4f4f4; text-align: left }
figure { margin: 1rem 0 } svg { display: block; max-width: 100%; height: auto }
"""

Rows = Sequence[Sequence[str]]
Table = tuple[str, Sequence[str], Rows]
"""Title, heads, rows."""


def write(folder: Path, results: Results, outcomes: Sequence[Outcome], answers: Sequence[Mapping[str, Any]]) -> None:
    """Write report.md and report.html. folder: has the plots."""
    tables = [*_tables(results), _broken(outcomes), _examples(answers)]
    plots = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("plot-*.svg"))}
    stages.write(folder / "report.md", _markdown(results, tables, plots))
    stages.write(folder / "report.html", _html(results, tables, plots))


def _headline(results: Results) -> str:
    test = results.sets["test"]
    better = "lower" if test.gain.mean >= 0 else "higher"
    return (
        f"On {test.conversations} held-out conversations the tuned model's loss is {abs(test.gain.mean):.4f} nats a "
        f"token {better} than the base's (95 %: {_range(test.gain)}). Of {results.regression.passed} regression items "
        f"that the base passes, {len(results.regression.broken)} are broken."
    )


def _tables(results: Results) -> Iterable[Table]:
    for name, judged in results.sets.items():
        yield _set_table(name, judged)
        if judged.preference:
            yield _preference_table(name, judged.preference)
    if results.parity:
        parity = results.parity
        rows = [
            ["tokens", str(parity.tokens)],
            ["mean change when served", f"{parity.served:+.4f} nats"],
            ["mean change in PyTorch", f"{parity.trained:+.4f} nats"],
            ["mean difference of the changes", f"{parity.mean_difference:.4f} nats"],
            ["highest difference", f"{parity.highest_difference:.4f} nats"],
            ["correlation", f"{parity.correlation:.4f}"],
            ["prompts and endings that differ", "; ".join(parity.problems[:5]) or "none"],
        ]
        yield "Parity: serving changed as training did", ("", "value"), rows
    if results.base_speed and results.tuned_speed:
        rows = [["base", *_speed(results.base_speed)], ["tuned", *_speed(results.tuned_speed)]]
        heads = ("model", "until the first token", "half of the answers", "all but 5 %", "tokens/s of an answer")
        yield "Latency, several answers at a time", heads, rows


def _set_table(name: str, judged: Judged) -> Table:
    gain = Interval(-judged.gain.mean, -judged.gain.high, -judged.gain.low, judged.gain.size)
    rows = [
        ["loss, nats a token", f"{judged.base_loss:.4f}", f"{judged.tuned_loss:.4f}", _interval(gain)],
        ["perplexity", f"{exp(judged.base_loss):.2f}", f"{exp(judged.tuned_loss):.2f}", "× " + _factor(gain)],
    ]
    rows += [
        [metric, f"{told.base:.3f}", f"{told.tuned:.3f}", _interval(told.change)]
        for metric, told in judged.metrics.items()
    ]
    title = f"Set {name}: {judged.conversations} conversations, {judged.answers} answers, {judged.tokens} tokens"
    return title, ("measure", "base", "tuned", "change (95 %), by conversation"), rows


def _preference_table(name: str, told: Preference) -> Table:
    rows = [
        ["the tuned model wins", str(told.wins)],
        ["the base wins", str(told.losses)],
        ["ties", str(told.ties)],
        ["prefers what stands first, or second", str(told.swayed)],
        ["said no verdict", str(told.unreadable)],
        ["not asked, the budget was used", str(told.left_out)],
        ["wins less losses", _interval(told.score) if told.score else "none"],
        ["tokens", str(told.tokens)],
    ]
    return f"Preference on the set {name}, by {told.judge}, asked in both orders", ("", "pairs"), rows


def _broken(outcomes: Sequence[Outcome]) -> Table:
    changed = [one for one in outcomes if one.base != one.tuned or one.broken]
    rows = [[one.id, one.about, _short(one.base), _short(one.tuned), one.tuned_failure or "passes"] for one in changed]
    return "Regression items whose answer changed", ("item", "about", "base", "tuned", "tuned now"), rows


def _examples(answers: Sequence[Mapping[str, Any]]) -> Table:
    def moved(row: Mapping[str, Any]) -> float:
        before, after = row["scores"]["base"], row["scores"]["tuned"]
        return float(sum(abs(after[name] - before[name]) for name in before))

    chosen = sorted(answers, key=moved, reverse=True)[:EXAMPLES]
    rows = [[_short(row[name]) for name in ("asked", "reference", "base", "tuned")] for row in chosen]
    return "Answers that changed most", ("asked", "reference", "base", "tuned"), rows


def _markdown(results: Results, tables: Iterable[Table], plots: Mapping[str, str]) -> str:
    parts = [f"# Evaluation on {results.file}\n\n{_headline(results)}\n"]
    parts += [f"![{_named(name)}]({name})\n" for name in plots]
    for title, heads, rows in tables:
        parts.append(f"## {title}\n")
        if not rows:
            parts.append("None.\n")
            continue
        told = [heads, ["---"] * len(heads), *rows]
        parts.append("\n".join(f"| {' | '.join(map(_cell, row))} |" for row in told) + "\n")
    return "\n".join(parts)


def _html(results: Results, tables: Iterable[Table], plots: Mapping[str, str]) -> str:
    title = html.escape(f"Evaluation on {results.file}")
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>',
        f"<h1>{title}</h1><p>{html.escape(_headline(results))}</p>",
        *(f'<figure role="img" aria-label="{html.escape(_named(name))}">{svg}</figure>' for name, svg in plots.items()),
    ]
    for heading, heads, rows in tables:
        head = "".join(f"<th>{html.escape(text)}</th>" for text in heads)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
        shown = f"<table><tr>{head}</tr>{body}</table>" if rows else "<p>None.</p>"
        parts.append(f"<h2>{html.escape(heading)}</h2>{shown}")
    return "\n".join(parts) + "\n</html>\n"


def _interval(told: Interval) -> str:
    return f"{told.mean:+.4f} ({_range(told)})"


def _range(told: Interval) -> str:
    return f"{told.low:+.4f} to {told.high:+.4f}"


def _factor(change: Interval) -> str:
    """By what a perplexity is multiplied where its logarithm changes so."""
    mean, low, high = (exp(value) for value in change[:3])
    return f"{mean:.4f} ({low:.4f} to {high:.4f})"


def _speed(speed: Speed) -> list[str]:
    seconds = (speed.first_s, speed.answer_s, speed.slow_s)
    return [*(f"{value * 1000:.0f} ms" for value in seconds), f"{speed.tokens_per_s:.0f}"]


def _named(plot: str) -> str:
    return plot.removeprefix("plot-").removesuffix(".svg")


def _short(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + " …"


def _cell(text: str) -> str:
    """Text in a Markdown table: what it holds must not become markup."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\r", " ").replace("\n", " ")
