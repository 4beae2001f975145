"""From zero: a node comes when something is asked for, and leaves when nothing is."""

import time
from typing import Any

import pytest

from app.runs import ENDED
from tests.cluster.conftest import MODEL, Cluster
from tests.shop import shop

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]

SERVING = {"serve-1", "serve-2"}
ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "rag": False, "max_tokens": 20}
# Nobody has a GPU here; what is asked for beside it is what cluster/params.yaml says.
QUICK = {"base": "demo", "gpu": False, "window": 128, "max_steps": 2, "batch": 2, "accumulation": 1, "rank": 4}


@pytest.fixture
def asleep(cluster: Cluster) -> Cluster:
    """With nothing but its head, and a model that may sleep."""
    if cluster.replicas != (0, 2):
        cluster.deploy(replicas=(0, 2))
    cluster.until(lambda: set(cluster.nodes()) == {"head"}, 240)
    return cluster


def test_a_chat_brings_a_node_is_held_and_answered_and_the_node_leaves(asleep: Cluster):
    """Nothing but the head is there before, and nothing else afterwards; health checks keep nobody."""
    with asleep.http() as http:
        assert http.get("/health").json()["parts"]["llm"] == "asleep"
        started = time.monotonic()
        answer = http.post("/v1/chat/completions", json=ASK)
        assert answer.status_code == 200, answer.text
        print(f"the first answer took {time.monotonic() - started:.1f} s, a node included")
        (came,) = set(asleep.nodes()) & SERVING
        started = time.monotonic()
        asleep.until(lambda: http.get("/health").json()["parts"]["llm"] == "asleep")
        asleep.until(lambda: set(asleep.nodes()) == {"head"})
        print(f"the node left {time.monotonic() - started:.1f} s after the last request")
    assert asleep.machines[came].processes("raylet") == []


def test_training_brings_its_own_node_beside_serving_within_the_limits(asleep: Cluster):
    """Two that want a training node each get the one that there may be in turn, while a chat brings another kind."""
    script = (
        "import ray, time, yaml; ray.init('auto', logging_level='error', log_to_driver=False); "
        "wanted = {'train': 1000 * yaml.safe_load(open('cluster/params.yaml'))['tune']['resources']['train']}; "
        "task = ray.remote(resources=wanted, num_gpus=1)(lambda: (time.sleep(5), ray.util.get_node_ip_address())[1]); "
        "print('ran on', ray.get([task.remote(), task.remote()]))"
    )
    log, started = asleep.folder / "training.log", time.monotonic()
    training = asleep.head.start(
        f'cd ~/mindfu && . cluster/environment.sh && RAY_ADDRESS=127.0.0.1:6379 .venv/bin/python -c "{script}"', log
    )
    with asleep.http() as http:
        assert http.post("/v1/chat/completions", json=ASK).status_code == 200
    seen = set[str]()
    asleep.until(lambda: seen.update(asleep.nodes()) or training.poll() is not None, 180)
    address = asleep.machines["train-1"].address
    assert f"ran on ['{address}', '{address}']" in log.read_text()
    print(f"two training tasks and a chat took {time.monotonic() - started:.1f} s")
    assert len(seen & SERVING) == 1, "one replica was asked for"
    asleep.until(lambda: set(asleep.nodes()) == {"head"})
    print(f"and both nodes had left after {time.monotonic() - started:.1f} s")


def test_a_training_run_takes_a_node_of_its_own_while_people_chat(asleep: Cluster):
    """From an upload to an adapter: stages on the head, tuning on a node that comes for it; the head's parts are asked
    all the time. That node has no model yet, and makes its own.
    """
    order = {"parameters": {"validate": {"redact": False}, "tune": QUICK}, "until": "tune"}
    started, seen, failed, asked = time.monotonic(), set[str](), list[str](), 0
    with asleep.http() as http:
        upload = {"file": ("shop.jsonl", shop())}
        file = http.post("/v1/files", files=upload, data={"purpose": "fine-tune"}).raise_for_status().json()["id"]
        run = http.post("/train/start", json={**order, "files": [file], "model": MODEL}).raise_for_status().json()["id"]

        def ended() -> Any:
            nonlocal asked
            answer, asked = http.post("/v1/chat/completions", json=ASK), asked + 1
            failed.extend([answer.text] if answer.status_code != 200 else [])
            seen.update(asleep.nodes())
            told = http.get(f"/train/runs/{run}").json()
            return told if told["state"] in ENDED else None

        told = asleep.until(ended, 400)
        assert told["state"] == "succeeded", http.get(f"/train/runs/{run}/logs").text
    print(f"a run until its adapter took {time.monotonic() - started:.1f} s, beside {asked} chats")
    assert "train-1" in seen
    assert failed == []
    assert asleep.release in asleep.ray(".venv/bin/ray job list"), "it runs the released code"
    adapters = asleep.head.run("ls ~/mindfu/.mindfu/runs/*/adapter/adapter_model.safetensors").splitlines()
    assert len(adapters) == 1
    assert "mindfu-demo" in asleep.machines["train-1"].run("ls ~/mindfu/.mindfu/models")
    asleep.until(lambda: set(asleep.nodes()) == {"head"})
    print(f"and both nodes had left after {time.monotonic() - started:.1f} s")


def test_ray_lets_in_who_has_the_token_and_reports_nothing(cluster: Cluster):
    """Its pages are for the head alone, and there for those with the token; what it would report is off everywhere."""
    status = "curl -s -o /dev/null -w '%{http_code}' -m 5 http://{}:8265/api/serve/applications/ || true"
    assert cluster.head.run(status.replace("{}", "127.0.0.1")) in {"401", "403"}
    assert cluster.machines["desk"].run(status.replace("{}", cluster.head.address)) == "000"
    told = cluster.head.run("tr '\\0' '\\n' < /proc/$(pgrep -x gcs_server)/environ | grep -E 'USAGE_STATS|AUTH_MODE'")
    assert set(told.split()) == {"RAY_USAGE_STATS_ENABLED=0", "RAY_AUTH_MODE=token"}
