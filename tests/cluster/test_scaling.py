"""From zero: a node comes when something is asked for, and leaves when nothing is."""

import time

import pytest

from tests.cluster.conftest import MODEL, Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]

ASK = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "rag": False, "max_tokens": 20}


def test_a_chat_brings_a_node_is_held_and_answered_and_the_node_leaves(cluster: Cluster):
    """Nothing but the head is there before, and nothing else afterwards; health checks keep nobody."""
    with cluster.http() as http:
        assert http.get("/health").json()["parts"]["llm"] == "asleep"
        assert set(cluster.nodes()) == {"head"}
        started = time.monotonic()
        answer = http.post("/v1/chat/completions", json=ASK)
        assert answer.status_code == 200, answer.text
        print(f"the first answer took {time.monotonic() - started:.1f} s, a node included")
        assert set(cluster.nodes()) == {"head", "serve-1"}
        started = time.monotonic()
        cluster.until(lambda: http.get("/health").json()["parts"]["llm"] == "asleep")
        cluster.until(lambda: set(cluster.nodes()) == {"head"})
        print(f"the node left {time.monotonic() - started:.1f} s after the last request")
    assert cluster.machines["serve-1"].processes("raylet") == []


def test_training_brings_its_own_node_beside_serving_within_the_limits(cluster: Cluster):
    """Two that want a training node each get the one that there may be in turn, while a chat brings another kind."""
    script = (
        "import ray, time, yaml; ray.init('auto', logging_level='error', log_to_driver=False); "
        "wanted = {'train': 1000 * yaml.safe_load(open('cluster/params.yaml'))['tune']['resources']['train']}; "
        "task = ray.remote(resources=wanted, num_gpus=1)(lambda: (time.sleep(5), ray.util.get_node_ip_address())[1]); "
        "print('ran on', ray.get([task.remote(), task.remote()]))"
    )
    log = cluster.folder / "training.log"
    training = cluster.head.start(
        f'cd ~/mindfu && . cluster/environment.sh && RAY_ADDRESS=127.0.0.1:6379 .venv/bin/python -c "{script}"', log
    )
    with cluster.http() as http:
        assert http.post("/v1/chat/completions", json=ASK).status_code == 200
    seen = set[str]()
    cluster.until(lambda: seen.update(cluster.nodes()) or training.poll() is not None, 180)
    address = cluster.machines["train-1"].address
    assert f"ran on ['{address}', '{address}']" in log.read_text()
    assert seen <= {"head", "serve-1", "train-1"}, "of each kind as many as may be"
    cluster.until(lambda: set(cluster.nodes()) == {"head"})


def test_ray_lets_in_who_has_the_token_and_reports_nothing(cluster: Cluster):
    """Its pages are for the head alone, and there for those with the token; what it would report is off everywhere."""
    status = "curl -s -o /dev/null -w '%{http_code}' -m 5 http://{}:8265/api/serve/applications/ || true"
    assert cluster.head.run(status.replace("{}", "127.0.0.1")) in {"401", "403"}
    assert cluster.machines["desk"].run(status.replace("{}", cluster.head.address)) == "000"
    told = cluster.head.run("tr '\\0' '\\n' < /proc/$(pgrep -x gcs_server)/environ | grep -E 'USAGE_STATS|AUTH_MODE'")
    assert set(told.split()) == {"RAY_USAGE_STATS_ENABLED=0", "RAY_AUTH_MODE=token"}
