"""What ingestion reaches of what the embedding model allows, and what a peer reaches with the same model.

    python -m benchmarks.ingest [--documents 250] [--peer-documents 60] [--no-peer] [--ask]

The documents are sources of Python's standard library, as text. In one run, one after the other, on the same cores:

1. LlamaIndex on a part of them (benchmarks/ingest_peer.py), installed into MINDFU_HOME/benchmarks on first use
2. the ceiling: half of our chunks of them, embedded by the same model and backend in one process for each core, and no
   more
3. `mindfu ingest` of the folder into a server of its own, which is started for it and idle but for this: from the
   command's first look at the folder to the last document, and the same without the start of Ray Data's stages (from
   the first documents that came in to the last)
4. the first two once more, the ceiling with the other half: shared cores change their speed within minutes
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from app.chunking import cut
from app.embedding_source import bundled
from app.ingestion import Ingestion, Outcome, Report
from app.messages import Index
from app.prepared import passage_texts
from app.settings import EmbeddingSettings, home
from deployments.embedder import load_model
from deployments.joining import address_of, environment, joined

ROOT = Path(__file__).parents[1]
PEER = ("llama-index-core==0.14.25", "llama-index-embeddings-huggingface==0.8.0", "torch==2.13.0")
SIZES = (4_000, 40_000)  # bytes of a document
PORT = 21435
PART = 256  # texts that are sorted together: more would be 1 % faster


def corpus(folder: Path, count: int) -> int:
    """Copies sources into the folder, as text; returns their bytes."""
    library = Path(sysconfig.get_path("stdlib"))
    found = [path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]
    fit = [path for path in found if SIZES[0] <= path.stat().st_size <= SIZES[1] and path.read_bytes().isascii()]
    step = max(1, len(fit) // count)
    for number, path in enumerate(fit[::step][:count]):
        shutil.copyfile(path, folder / f"{number:04}_{path.stem}.txt")
    return sum(path.stat().st_size for path in folder.iterdir())


def texts_of(folder: Path) -> list[str]:
    """What is embedded of the documents."""
    found: list[str] = []
    for path in sorted(folder.iterdir()):
        index = Index(collection="x", document_id="x", title=path.name, chunks=cut(path.read_text()))
        found += passage_texts(index)
    return found


def embed(texts: list[str], cache: Path) -> tuple[float, float]:
    """Embed them in this process: when it began, and when it ended."""
    model = load_model(EmbeddingSettings(), cache)
    model.embed_passages(texts[:16])
    began = time.time()
    for start in range(0, len(texts), PART):
        model.embed_passages(texts[start : start + PART])
    return began, time.time()


def ceiling(texts: list[str], cache: Path, workers: int) -> float:
    """Texts a second, of all processes together, while all of them work."""
    load_model(EmbeddingSettings(), cache)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        running = [pool.submit(embed, texts[number::workers], cache) for number in range(workers)]
        rates = [
            len(texts[number::workers]) / (end - began) for number, (began, end) in enumerate(map(_result, running))
        ]
    return sum(rates)


def _result(future: Any) -> tuple[float, float]:
    found: tuple[float, float] = future.result()
    return found


class Watch:
    """When chunks came in."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def planned(self, documents: int) -> None: ...

    def saw(self, outcome: Outcome) -> None:
        self.seen.append((time.monotonic(), outcome.chunks))

    def steady(self) -> float:
        """Chunks a second, from when the first were in to the last."""
        first, last = self.seen[0][0], self.seen[-1][0]
        return sum(chunks for at, chunks in self.seen if at > first + 0.5) / (last - first)


class Asking:
    """Somebody who asks a question every second. seconds: how long each answer took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=60) as http:
            while not self._stop.wait(1.0):
                began = time.perf_counter()
                http.post("/v1/documents/query", json={"query": "How is a file opened?"}).raise_for_status()
                self.seconds.append(time.perf_counter() - began)


def ours(folder: Path, scratch: Path, *, ask: bool) -> tuple[Report, Watch]:
    """Start a server, ingest as the command does, stop it. ask: a question every second, before and meanwhile."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = PORT
    (scratch / "serve.yaml").write_text(yaml.safe_dump(config))
    own = scratch / "home"
    server = subprocess.Popen(
        [sys.executable, "-m", "deployments.cli", "serve", str(scratch / "serve.yaml")],
        cwd=ROOT,
        env={**os.environ, "MINDFU_HOME": str(own)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout
        if not any("MindFu answers" in line for line in server.stdout):
            sys.exit("The server did not start.")
        address = address_of(own)
        assert address
        with joined(own, address):
            from deployments.bulk import Cluster

            watch, times = Watch(), list[list[float]]()
            if ask:
                with Asking() as before:
                    time.sleep(12)
                times.append(before.seconds[2:])
            with Asking() if ask else nullcontext() as meanwhile:
                report = Ingestion([str(folder)], Cluster(own)).run(watch)
            if meanwhile:
                times.append(meanwhile.seconds)
            for when, seconds in zip(("idle", "during the ingestion"), times, strict=False):
                print(f"a question, {when}: p50 {1000 * statistics.median(seconds):.0f} ms of {len(seconds)}")
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(90)
    assert set(report.counts) == {"added"}, report
    return report, watch


def peer(folder: Path, venv: Path) -> dict[str, float]:
    """Run LlamaIndex in its own environment, which is made if it is not there."""
    if not (venv / "ready").exists():
        uv = [str(Path(sys.executable).with_name("uv"))]
        subprocess.run([*uv, "venv", "--clear", "--python", sys.executable, str(venv)], check=True)
        subprocess.run(
            [*uv, "pip", "install", "--link-mode=copy", "--python", str(venv / "bin" / "python"), *PEER], check=True
        )
        (venv / "ready").touch()
    command = [str(venv / "bin" / "python"), str(ROOT / "benchmarks" / "ingest_peer.py"), str(folder), str(bundled())]
    shown = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(shown.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=250)
    parser.add_argument("--peer-documents", type=int, default=60)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--ask", action="store_true", help="ask a question every second, before and meanwhile")
    options = parser.parse_args()
    workers, venv = os.cpu_count() or 1, home() / "benchmarks" / "llama-index"
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        environment(scratch / "home")
        for name in ("all", "part"):
            (scratch / name).mkdir()
        size = corpus(scratch / "all", options.documents)
        chosen = sorted((scratch / "all").iterdir())[:: max(1, options.documents // options.peer_documents)]
        for path in chosen:
            shutil.copy(path, scratch / "part")
        texts = texts_of(scratch / "all")
        print(f"{options.documents} documents, {size / 1e6:.1f} MB, {len(texts)} chunks, {workers} cores", flush=True)
        peers, most = list[dict[str, float]](), list[float]()

        def beside(half: list[str]) -> None:
            if not options.no_peer:
                peers.append(peer(scratch / "part", venv))
            most.append(ceiling(half, scratch / "cache", workers))

        beside(texts[::2])
        report, watch = ours(scratch / "all", scratch, ask=options.ask)
        beside(texts[1::2])
        limit = statistics.mean(most)
        print(f"ceiling: {limit:.1f} texts/s ({most[0]:.1f} before, {most[1]:.1f} after)")
        rate, documents = report.chunks / report.seconds, report.counts["added"] / report.seconds
        print(f"mindfu ingest: {report.chunks} chunks in {report.seconds:.1f} s, {documents:.2f} documents/s")
        print(f"  {rate:.1f} texts/s, {rate / limit:.2f} of the ceiling, the start of the stages included")
        print(f"  {watch.steady():.1f} texts/s, {watch.steady() / limit:.2f} of the ceiling, without it")
        if peers:
            seconds = [found["seconds"] for found in peers]
            theirs = sum(path.stat().st_size for path in chosen) / statistics.mean(seconds)
            count, of = peers[0]["texts"], peers[0]["documents"]
            print(f"LlamaIndex: {of} documents, {count} texts in {seconds[0]:.1f} s before, {seconds[1]:.1f} s after")
            print(f"  {count / statistics.mean(seconds):.1f} texts/s, {theirs / 1000:.2f} kB/s of documents")
            mine = size / report.seconds
            print(f"mindfu / LlamaIndex, by kB/s of documents: {mine / theirs:.2f}, ours {mine / 1000:.2f} kB/s")


if __name__ == "__main__":
    main()
