"""GPU nodes from zero, of cluster.yaml's own node types: cluster/serve.yaml, as `serve run` starts it there.

The GPUs are only counted, as nobody has one here: the model takes one, as cluster/serve.yaml says, and computes without
it; training asks for what cluster/params.yaml says beside a GPU, since PyTorch would want to use it. tests/cluster has
the same on machines that are apart, which takes root.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from app.postgres import open_pool
from app.postgres_home import PostgresHome
from app.runs import ENDED
from tests.acceptance.conftest import START_S
from tests.cluster.load import Outcome, under_load
from tests.gguf_factory import random_model
from tests.loopback import KEY, ROOT, Loopback, loopback_cluster
from tests.ports import free_port
from tests.shop import shop

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 without being asked"),
]

MODEL = "tiny"
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "rag": False, "max_tokens": 20}
SERVING = {"gpu-serve-l4", "gpu-serve-l40s"}
QUICK = {"base": "demo", "gpu": False, "window": 128, "max_steps": 2, "batch": 2, "accumulation": 1, "rank": 4}
HOLD_S = 2.0  # then a 503


@dataclass
class Site:
    """MindFu on that cluster. seen: at most so many nodes of a kind at once, whoever looked."""

    cluster: Loopback
    url: str
    log: Path
    postgres_url: str
    seen: Counter[str] = field(default_factory=Counter)

    def http(self) -> httpx.Client:
        """A client with the key."""
        return httpx.Client(base_url=self.url, timeout=120, headers={"authorization": f"Bearer {KEY}"})

    def is_healthy(self) -> bool:
        """Whether every part answers, or sleeps."""
        with suppress(httpx.TransportError), self.http() as http:
            return http.get("/health").status_code == 200
        return False

    def kinds(self) -> Counter[str]:
        """How many nodes there are of each kind, but for the head."""
        found = Counter(kind for kind in self.cluster.nodes().values() if kind != "head")
        self.seen |= found
        return found

    def until(self, found: Callable[[], Any], limit_s: float = 120) -> Any:
        """Wait until something is so, and say what it is."""
        deadline = time.monotonic() + limit_s
        while not (told := _or_none(found)):
            assert time.monotonic() < deadline, f"not within {limit_s:.0f} s\n{self.log.read_text()[-5000:]}"
            time.sleep(0.3)
        return told

    def replicas(self) -> list[str]:
        """The nodes of the model's replicas that run, by their addresses."""
        told = self.cluster.ask("/api/serve/applications/")["applications"]["mindfu"]["deployments"]["LlamaCpp"]
        return [one["node_ip"] for one in told["replicas"] if one["state"] == "RUNNING"]

    def answered(self, http: httpx.Client) -> httpx.Response:
        """A chat, asked again as it is told to, but sooner."""
        return self.until(lambda: (told := http.post("/v1/chat/completions", json=ASK)).status_code != 503 and told)


def _or_none(found: Callable[[], Any]) -> Any:
    """None, too, where an answer is late: the machine may be busy."""
    with suppress(httpx.HTTPError):
        return found()


def graph(port: int, folder: Path) -> dict[str, Any]:
    """cluster/serve.yaml with a tiny model, and less patience; what parts ask of Ray is as it is shipped."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    (application,) = config["applications"]
    llm = {"model": str(random_model(folder / "tiny.gguf")), "name": MODEL, "window": 2048, "slots": 8, "threads": 1}
    application["args"] = {"llm": llm, "gateway": {"wake_wait_s": HOLD_S}}
    model = next(one for one in application["deployments"] if one["name"] == "LlamaCpp")
    model["autoscaling_config"] |= {
        "target_ongoing_requests": 2, "downscale_delay_s": 4, "upscale_delay_s": 1, "look_back_period_s": 2,
        "metrics_interval_s": 1,
    }  # fmt: skip
    return config


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, postgres_home: Path) -> Iterator[Site]:
    """Running, with nothing but its head."""
    folder = tmp_path_factory.mktemp("cluster")
    url = f"postgresql://postgres@/postgres?host={PostgresHome(postgres_home).run}"
    with loopback_cluster(folder, url) as cluster:
        port = free_port()
        (file := folder / "serve.yaml").write_text(yaml.safe_dump(graph(port, folder)))
        site = Site(cluster, f"http://127.0.0.1:{port}", folder / "serve.log", url)
        serving = cluster.start(f"serve run {file}", site.log)
        site.until(lambda: serving.poll() is not None or site.is_healthy(), START_S)
        assert serving.poll() is None, site.log.read_text()
        yield site


def test_a_chat_brings_a_gpu_node_and_it_leaves(site: Site):
    """Asked too early it is a 503 that says how far the node is; health checks keep nobody there."""
    assert not site.kinds()
    with site.http() as http:
        assert http.get("/health").json()["parts"]["llm"] == "asleep"
        early = http.post("/v1/chat/completions", json=ASK)
        assert early.status_code == 503, early.text
        assert int(early.headers["retry-after"]) > 0
        assert early.json()["progress"]["waited_s"] >= HOLD_S
        assert early.json()["progress"]["stage"]
        answer = site.answered(http)
        assert answer.status_code == 200, answer.text
        assert [(kind in SERVING, many) for kind, many in site.kinds().items()] == [(True, 1)]
        site.until(lambda: http.get("/health").json()["parts"]["llm"] == "asleep")
        site.until(lambda: not site.kinds())


def test_training_brings_its_own_gpu_node_beside_serving_within_the_limits(site: Site):
    """Others who want a whole node of that kind, with its GPU, get the one that there may be in turn."""
    order = {"parameters": {"validate": {"redact": False}, "tune": QUICK}, "until": "tune"}
    wanted = "ray.remote(lambda: 0).options(num_gpus=1, resources={'train': 1000}).remote()"  # the whole of a node
    script = f"import ray; ray.init(log_to_driver=False); ray.get([{wanted}, {wanted}])"
    site.seen.clear()
    with site.http() as http:
        upload = {"file": ("shop.jsonl", shop())}
        file = http.post("/v1/files", files=upload, data={"purpose": "fine-tune"}).raise_for_status().json()["id"]
        run = http.post("/train/start", json={**order, "files": [file], "model": MODEL}).raise_for_status().json()["id"]

        def ended() -> Any:
            site.kinds()
            told = http.get(f"/train/runs/{run}").json()
            return told if told["state"] in ENDED else None

        site.until(lambda: site.kinds()["gpu-train"] or ended())
        rivals = site.cluster.start(f'python -c "{script}"', site.log)
        assert site.answered(http).status_code == 200
        told = site.until(ended, 300)
        assert told["state"] == "succeeded", http.get(f"/train/runs/{run}/logs").text
        site.until(lambda: (site.kinds(), rivals.poll())[1] is not None)
        assert rivals.returncode == 0, site.log.read_text()
        site.until(lambda: not site.kinds())
    assert site.seen["gpu-train"] == site.cluster.limits["gpu-train"] == 1
    assert SERVING & set(site.seen)


async def recorded(site: Site, outcomes: list[Outcome]) -> int:
    """How many of these answers PostgreSQL has."""
    told = "extras ->> 'x_request_id'"
    pool = await open_pool(site.postgres_url, site.cluster.home)
    try:
        query = f"select count(distinct {told}) from turns where {told} = any($1)"
        return int(await pool.fetchval(query, [outcome.request_id for outcome in outcomes]))
    finally:
        await pool.close()


def test_a_gpu_node_that_dies_ends_its_own_streams_only_and_another_comes(site: Site):
    """Each with an error event; all that began to be answered is kept."""
    with site.http() as http:
        assert site.answered(http).status_code == 200
    with under_load(site.url, KEY, MODEL) as load:
        site.until(lambda: len(site.replicas()) == 2 and load.count()["complete"] > 12)
        before = set(site.cluster.nodes())
        moment = time.monotonic()
        site.cluster.kill(site.replicas()[0])
        died = time.monotonic()
        site.until(lambda: load.complete_since(moment) > 12)
        site.until(lambda: set(site.cluster.nodes()) - before and len(site.replicas()) == 2)
    failed = load.failed()
    assert load.count()["cut"] == 0, failed
    assert len(failed) <= load.clients, failed
    assert all(outcome.began < died + 5 for outcome in failed), failed
    assert asyncio.run(recorded(site, load.outcomes)) == load.answered()


def test_a_gpu_node_that_is_drained_fails_nobody(site: Site):
    """What it began it ends, and another one takes over."""
    with under_load(site.url, KEY, MODEL, clients=3) as load:
        site.until(lambda: len(site.replicas()) == 2 and load.count()["complete"] > 6)
        place = site.replicas()[0]
        site.cluster.drain(place)
        site.until(lambda: place not in site.replicas() and site.replicas())
        moment = time.monotonic()
        site.until(lambda: load.complete_since(moment) > 6)
    assert load.failed() == []
    assert asyncio.run(recorded(site, load.outcomes)) == load.answered()
