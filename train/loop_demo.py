"""The learning loop on real conversations, from end to end, on one machine. Under 20 minutes on two cores.

    make loop-demo                              downloads 4 MB of conversations: orders at a coffee bar
    make loop-demo CHATS=conversations.jsonl    yours, as {"messages": [...]}

A server is started in a home of its own. People replay the conversations (train/loop_people.py), correct some answers
and rate others; the server learns by itself, judges what came out, and lets it answer while others keep asking. Then
it is measured on conversations that no correction touched, taken back, and led into temptation: wrong corrections, and
an adapter that somebody spoiled. Exit status 0: all went as docs/loop.md says; 1: something did not; 2: it cannot be
done.
"""

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from app.errors import MindFuError, Misconfigured
from app.settings import params_file
from train import evaluate, gate, lines, loop_rehearsal, publish, stages
from train.loop_people import MODEL, Chat, People, download, examined, known, read
from train.loop_report import Findings, record, report
from train.results import Results
from train.sources import ROOT

START_S, STOP_S, LOOK_S = 300.0, 120.0, 2.0
MOST, ASKED = 320, 12  # conversations; questions of untouched ones that are asked before, after, and after the rollback
PARAMETERS: Mapping[str, Mapping[str, object]] = {
    "export": {"sources": True},  # the answers from documents stand behind what the model saw for them
    "split": {"train": 0.8, "validation": 0.02, "test": 0.18},
    "tune": {"base": "demo", "quantise": False, "rank": 32, "alpha": 64, "dropout": 0.4,
             "learning_rate": 2e-3, "epochs": 11, "window": 512, "batch": 1, "accumulation": 1,
             "gradient_checkpointing": False, "evaluate_steps": 100_000, "rehearsed": 0.4},
    "evaluate": {"answers": 150, "max_tokens": 48},
    "publish": {"model": MODEL},
}  # fmt: skip
"""Instead of what params.yaml says. A small model learns in many large steps, and to their end: no evaluation comes
before. Where the validation loss is lowest it has the words, but cannot end a sentence of them yet, and repeats itself.
InstructGPT's went on for the same reason (Ouyang et al. 2022, arXiv:2203.02155, section 3.5).
"""
POISON: Mapping[str, Mapping[str, object]] = {"tune": {"epochs": 3}}  # which is enough to see


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="make loop-demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--chats", type=Path, help="conversations; else Taskmaster-4 is downloaded")
    parser.add_argument("--most", type=int, default=MOST, help="of them")
    parser.add_argument("--home", type=Path, default=Path(".mindfu/loop-demo"), help="emptied first, and kept")
    parser.add_argument("--record", type=Path, help="a Markdown file that keeps the numbers")
    options = parser.parse_args()
    began = time.monotonic()
    try:
        file = options.chats or download(options.home.parent / "downloads")
        chats = read(file, options.most)
        shutil.rmtree(options.home, ignore_errors=True)
        with serving(options.home.resolve(), chats) as url:
            found = asyncio.run(demonstrate(url, options.home.resolve(), chats, began))
    except MindFuError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    text = report(found)
    print(text)
    if options.record:
        record(options.record, text)
    sys.exit(0 if all(found.claims().values()) else 1)


@contextlib.contextmanager
def serving(home: Path, chats: Sequence[Chat]) -> Iterator[str]:
    """`mindfu serve` in a home of its own, which learns when these conversations were taught. Yields its URL."""
    home.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text(encoding="utf-8"))
    config["http_options"]["port"] = port
    taught = sum(len(chat.exchanges) for chat in chats if chat.part != "untouched") + len(known()[1])
    config["applications"][0]["args"]["training"] = {"after_ratings": taught, "promote": True}
    (home / "serve_config.yaml").write_text(yaml.safe_dump(config))
    told = yaml.safe_load(params_file().read_text(encoding="utf-8")) if params_file().exists() else {}
    for section, values in PARAMETERS.items():
        told[section] = {**told.get(section, {}), **values}
    asked = {loop_rehearsal.plain(one.question) for one in known()[1]}
    loop_rehearsal.write(home / "rehearsal.jsonl", examined() | asked)
    told["tune"]["rehearse"] = str(home / "rehearsal.jsonl")
    (home / "params.yaml").write_text(yaml.safe_dump(told))
    environment = {**os.environ, "MINDFU_HOME": str(home), "MINDFU_PARAMS": str(home / "params.yaml")}
    os.environ |= {name: environment[name] for name in ("MINDFU_HOME", "MINDFU_PARAMS")}  # of our own stages
    process = subprocess.Popen(  # noqa: S603 - our own arguments
        [sys.executable, "-m", "deployments.cli", "serve", str(home / "serve_config.yaml")], env=environment
    )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(STOP_S)


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=10).is_success:
                return
        time.sleep(LOOK_S)
    raise Misconfigured("loop-demo", "the server did not start", "What it said stands above.")


async def demonstrate(url: str, home: Path, chats: Sequence[Chat], began: float) -> Findings:
    """All of it, on a server that runs."""
    untouched = [chat for chat in chats if chat.part == "untouched"]
    asked = untouched[:ASKED]
    async with httpx.AsyncClient(base_url=url, timeout=300) as http:
        people = People(http)
        _say(began, f"{len(chats)} conversations, of which {len(untouched)} are never corrected")
        before = await people.first_answers(asked)
        practised = await people.practise(*known())
        _say(began, f"documents asked, and answers rated: {dict(practised)}")
        done = await people.replay(chats)
        _say(began, f"replayed and taught: {dict(done)}")
        async with people.crowd(untouched):
            run = await _ended(people, began)
        _say(began, f"judged: {run['result'].get('verdict')} {'; '.join(run['result'].get('reasons') or ())}")
        after = await people.first_answers(asked)
        started = time.perf_counter()
        if run["result"].get("promoted"):
            await people.post(f"/models/{MODEL}/rollback", {"reason": "the demonstration"})
        rollback_s = time.perf_counter() - started
        again = await people.first_answers(asked)
        _say(began, f"taken back in {rollback_s:.2f} s")
        results = await asyncio.to_thread(measure, home, run, untouched)
        _say(began, "measured on untouched conversations")
        poisoned = await _poisoned(people, chats, untouched, began)
        sabotaged = await _sabotaged(people, home, run, untouched)
        _say(began, "an adapter was spoilt")
    return Findings(
        chats=done,
        practised=practised,
        untouched=results.sets["trusted"],
        broken=(len(results.regression.broken), results.regression.passed),
        answered=people.answered,
        failed=people.failed,
        promoted=bool(run["result"].get("promoted")),
        answers=(before, after, again),
        rollback_s=rollback_s,
        poisoned=poisoned,
        sabotaged=sabotaged,
        minutes=(time.monotonic() - began) / 60,
    )


async def _ended(people: People, began: float, name: str | None = None) -> dict[str, Any]:
    """A run that has ended; without a name, the one that the server began by itself."""
    shown = ""
    while True:
        listed: Any = (await people.get("/train/runs"))["data"]
        run = next((one for one in listed if name is None or one["id"] == name), None)
        if run is not None:
            told = run["progress"] or {}
            if (said := f"{run['id']} {run['state']} {told.get('stage', '')}") != shown:
                _say(began, shown := said)
            if run["state"] in {"succeeded", "failed", "cancelled"}:
                if run["state"] != "succeeded":
                    raise Misconfigured("loop-demo", f"the run has {run['state']}: {run['error']}", "See its log.")
                return dict(run)
        await asyncio.sleep(LOOK_S)


def measure(home: Path, run: Mapping[str, Any], untouched: Sequence[Chat], tuned: str | None = None) -> Results:
    """Judge what a run made by conversations that no correction touched. tuned: instead of the run's own."""
    return Results.model_validate_json((_evaluated(home, run, untouched, tuned) / evaluate.RESULTS).read_bytes())


def _evaluated(home: Path, run: Mapping[str, Any], untouched: Sequence[Chat], tuned: str | None) -> Path:
    folders = run["result"]["folders"]
    lines.save(home / "untouched.jsonl", [chat.line() for chat in untouched])
    inputs = {
        "data": home / "datasets" / folders["split"],
        "tuned": home / "runs" / (tuned or folders["tune"]),
        "trusted": home / "untouched.jsonl",
    }
    chosen = stages.section("evaluate", evaluate.Evaluation, home / "params.yaml", {})
    return stages.run(evaluate.STAGE, inputs=inputs, parameters=chosen, home=home)


async def _poisoned(
    people: People, chats: Sequence[Chat], untouched: Sequence[Chat], began: float
) -> tuple[str, Sequence[str]]:
    """A run on wrong and broken answers: of other conversations, backwards or cut short. Returns its verdict."""
    dealer = random.Random(0)  # noqa: S311 - the same each time
    answers = [pair.reference for chat in chats for pair in chat.exchanges]
    wrong = []
    for chat in chats:
        if chat.part == "corrected":
            pairs = [pair._replace(reference=_spoilt(dealer.choice(answers), dealer)) for pair in chat.exchanges]
            wrong.append(chat._replace(exchanges=tuple(pairs)).line())
    order = {
        "files": [await people.upload("poisoned.jsonl", wrong)],
        "trusted": await people.upload("trusted.jsonl", [chat.line() for chat in untouched]),
        "parameters": POISON,
        "promote": True,
    }
    name = (await people.post("/train/start", order)).json()["id"]
    result = (await _ended(people, began, name))["result"]
    return result["verdict"], result["reasons"]


def _spoilt(answer: str, dealer: random.Random) -> str:
    words = answer.split()
    return " ".join(reversed(words)) if dealer.random() < 0.5 else '{"order": [' + " ".join(words[: len(words) // 2])


async def _sabotaged(
    people: People, home: Path, run: Mapping[str, Any], untouched: Sequence[Chat]
) -> tuple[int, Sequence[str]]:
    """An adapter that says the opposite of what was learnt, published as if it were one. Returns the status and why."""
    folders, tuned = run["result"]["folders"], "tune-spoilt"

    def made() -> tuple[str, Sequence[str]]:
        _spoil(home / "runs" / folders["tune"], home / "runs" / tuned)
        judged = _evaluated(home, run, untouched, tuned)
        gates = stages.section("gate", gate.Gates, home / "params.yaml", {})
        verdict = stages.run(gate.STAGE, inputs={"evaluation": judged}, parameters=gates, home=home)
        inputs = {
            "data": home / "datasets" / folders["split"], "tuned": home / "runs" / tuned,
            "evaluation": judged, "gate": verdict,
        }  # fmt: skip
        wanted = publish.Publication(model=MODEL, version="spoilt")
        stages.run(publish.STAGE, inputs=inputs, parameters=wanted, home=home)
        return "spoilt", gate.Verdict.model_validate_json((verdict / gate.VERDICT).read_bytes()).reasons

    version, reasons = await asyncio.to_thread(made)
    try:
        status = (await people.post(f"/models/{MODEL}/promote", {"version": version})).status_code
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
    return status, reasons


def _spoil(tuned: Path, folder: Path) -> None:
    """The stage's folder with the adapter turned around, four times as strong."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(tuned, folder, ignore=shutil.ignore_patterns(stages.MANIFEST, ".*"))
    file = folder / "adapter" / "adapter_model.safetensors"
    save_file({name: -4 * one if "lora_B" in name else one for name, one in load_file(file).items()}, file)
    told = stages.manifest(tuned).model_copy(update={"content": stages.content(folder), "key": "spoilt" + "0" * 10})
    stages.write(folder / stages.MANIFEST, told.model_dump_json())


def _say(began: float, text: str) -> None:
    print(f"{(time.monotonic() - began) / 60:5.1f} min  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
