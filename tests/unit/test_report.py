"""The report of an evaluation: every number and plot in both forms, and nothing that could be markup or script."""

import re
from pathlib import Path

from app.messages import Message
from train import plots, report
from train.parity import Parity
from train.results import Judged, Metric, Preference, Regression, Results, Speed
from train.scores import Interval
from train.serving import Said


def results() -> Results:
    gain = Interval(0.2, 0.1, 0.3, 30)
    told = Preference(
        judge="large", wins=9, losses=2, ties=3, swayed=4, unreadable=5, left_out=6, tokens=7,
        score=Interval(0.3, 0.1, 0.5, 18),
    )  # fmt: skip
    judged = Judged(
        conversations=30, answers=30, tokens=300, base_loss=1.0, tuned_loss=0.8, gain=gain, preference=told,
        metrics={"exact": Metric(base=0.5, tuned=0.75, change=Interval(0.25, 0.2, 0.3, 30))},
    )  # fmt: skip
    parity = Parity(tokens=9, served=0.2, trained=0.2, mean_difference=0.01, highest_difference=0.1, correlation=0.99)
    speed = Speed(first_s=0.1, tokens_per_s=50, answer_s=0.5, slow_s=2.0)
    return Results(
        file="demo.gguf", base="b", adapter="a", sets={"test": judged}, parity=parity, base_speed=speed,
        regression=Regression(items=3, passed=2, broken=(), mended=()), tuned_speed=speed,
    )  # fmt: skip


def written(folder: Path, answer: str = "fine") -> tuple[str, str]:
    """Markdown and HTML of an evaluation."""
    said = Said(answer_message(answer), ended=True, tokens=5, first_s=0.1, seconds=0.5)
    history = folder / "history.jsonl"
    history.write_text('{"step": 10, "loss": 2.0}\n{"step": 20, "loss": 1.5, "eval_loss": 1.8}\n')
    plots.write(folder, results(), {"base": [said], "tuned": [said]}, history)
    scores = {"base": {"exact": 0.0}, "tuned": {"exact": 1.0}}
    rows = [{"asked": "?", "reference": "r", "base": "b", "tuned": answer, "scores": scores}]
    report.write(folder, results(), (), rows)
    return (folder / "report.md").read_text(), (folder / "report.html").read_text()


def answer_message(text: str) -> Message:
    return Message(role="assistant", content=text)


def test_both_forms_have_every_measure_and_every_plot(tmp_path: Path):
    """Loss, perplexity (e^1 and e^0.8), scores, preference, latency; and plots of what changed and how it went."""
    markdown, html = written(tmp_path)
    assert "| perplexity | 2.72 | 2.23 | × 0.8187 (0.7408 to 0.9048) |" in markdown
    for text in (markdown, html):
        for told in ("0.750", "the tuned model wins", "100 ms", "2000 ms", "Preference on the set test, by large"):
            assert told in text
    assert re.findall(r"\]\((plot-\w+\.svg)\)", markdown) == ["plot-latency.svg", "plot-test.svg", "plot-training.svg"]
    assert html.count("<svg") == 3


def test_the_same_numbers_make_the_same_plots(tmp_path: Path):
    """So that a stage's content is its own."""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        written(folder)
    for name in ("plot-test.svg", "plot-latency.svg", "plot-training.svg"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_what_a_model_says_is_text(tmp_path: Path):
    """No tag, no link, no end of a table's row, in either form; and nothing is loaded from elsewhere."""
    markdown, html = written(tmp_path, "<script>alert(1)</script> | [x](http://evil) `\n# head")
    assert "<script" not in html
    assert r"\<script\>alert(1)\</script\> \| \[x\](http://evil) \` \# head" in markdown
    assert not re.search(r'(src|href)="http', html)
