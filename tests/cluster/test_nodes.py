"""Several nodes: one dies, is cut off, is drained, or is told otherwise, while people chat."""

import shutil
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.conftest import KEY, MODEL, Cluster
from tests.cluster.load import Load, Outcome, under_load

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]

TWO = {"serve-1", "serve-2"}


@pytest.fixture
def pair(cluster: Cluster) -> Cluster:
    """With two replicas, on a node each."""
    cluster.deploy(replicas=(2, 2))
    cluster.until(lambda: set(cluster.serving().values()) == TWO, 240)
    return cluster


def recorded(cluster: Cluster, outcomes: list[Outcome]) -> int:
    """How many of these answers PostgreSQL has."""
    wanted = ",".join(f"'{outcome.request_id}'" for outcome in outcomes)
    told = "extras ->> 'x_request_id'"
    query = f"select count(distinct {told}) from turns where {told} in ({wanted})"
    return int(cluster.head.run(f'. ~/mindfu/cluster/environment.sh && psql -At "$MINDFU_POSTGRES_URL" -c "{query}"'))


def report(what: str, load: Load) -> None:
    """For docs/cluster.md."""
    longest = max(outcome.ended - outcome.began for outcome in load.outcomes)
    print(f"{what}: {dict(load.count())}, the longest took {longest:.1f} s")
    for told in {outcome.told for outcome in load.failed()}:
        print(f"    {told}")


def test_the_head_alone_has_a_door(pair: Cluster):
    """As `proxy_location: HeadOnly` says; test_spread.py has them on each node."""
    assert set(pair.serving("Gateway").values()) == {"head"}
    for name in TWO:
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://{pair.machines[name].address}:11434/health", timeout=10)


def test_a_node_that_dies_ends_its_own_streams_only(pair: Cluster):
    """Each with an error event; what was answered is kept, nobody else notices, and the capacity comes back."""
    before = pair.serving()
    with under_load(pair.url, KEY, MODEL) as load:
        pair.until(lambda: len(load.outcomes) > 12)
        died = time.monotonic()
        pair.machines["serve-2"].run("pkill -9 -f 'rayle[t]|ray:[:]'")
        pair.until(lambda: load.complete_since(died) > 12)
        pair.until(lambda: set(pair.serving().values()) == TWO and pair.serving() != before, 480)
        print(f"a node died; two replicas were back after {time.monotonic() - died:.1f} s")
    report("a node died", load)
    failed = load.failed()
    assert load.count()["cut"] == 0
    assert all(outcome.began < died + 5 for outcome in failed), failed
    assert len(failed) <= load.clients
    assert recorded(pair, load.outcomes) == load.answered()


@pytest.mark.parametrize(
    ("what", "args"),
    [("the placement", {}), ("the settings", {"chat": {"system_prompt": "Be brief."}})],
)
def test_a_changed_configuration_rolls_out_without_a_failed_request(pair: Cluster, what: str, args: dict[str, Any]):
    """`serve deploy` of the changed file, while people chat: replicas go one after the other."""
    before = set(pair.serving())
    with under_load(pair.url, KEY, MODEL) as load:
        pair.until(lambda: len(load.outcomes) > 12)
        deployed = time.monotonic()
        pair.deploy(replicas=(2, 2) if args else (1, 2), args=args)
        pair.until(lambda: "RUNNING" in pair.ray(".venv/bin/serve status | grep -A1 mindfu:"), 240)
        if args:
            pair.until(lambda: len(new := set(pair.serving())) == 2 and not new & before, 240)
        pair.until(lambda: load.complete_since(deployed) > 24)
        print(f"{what}: changed after {time.monotonic() - deployed:.1f} s")
    report(f"{what} changed", load)
    assert load.failed() == []


def released(folder: Path, old: str, new: str) -> str:
    """The URI of the code with another word in it, as a zip that all machines see."""
    code = folder / "release"
    for name in ("app", "deployments", "train"):
        shutil.copytree(folder / "checkout" / name, code / name)
    gateway = code / "deployments" / "gateway.py"
    text = gateway.read_text()
    assert old in text
    gateway.write_text(text.replace(old, new))
    return f"file://{shutil.make_archive(str(code), 'zip', code)}"


def test_a_new_release_rolls_out_without_a_failed_request(pair: Cluster):
    """Every replica is started anew on the code that `runtime_env` names; nothing of the old code is touched."""
    before, said = set(pair.serving()), "every new part answers"
    release = released(pair.folder, "every part answers", said)
    with under_load(pair.url, KEY, MODEL) as load:
        pair.until(lambda: len(load.outcomes) > 12)
        deployed = time.monotonic()
        pair.deploy(replicas=(2, 2), release=release)
        pair.until(lambda: len(new := set(pair.serving())) == 2 and not new & before, 240)
        with pair.http() as http:
            pair.until(lambda: all(http.get("/health").json()["message"] == said for _ in range(8)))  # both gateways
        print(f"the release: changed after {time.monotonic() - deployed:.1f} s")
        pair.until(lambda: load.complete_since(deployed) > 24)
    report("the release changed", load)
    assert load.failed() == []
    assert recorded(pair, load.outcomes) == load.answered()


def test_a_node_that_is_cut_off_is_given_up(pair: Cluster):
    """Without a word from it, its streams end with an error event as soon as Ray knows; healed, it serves again."""
    with under_load(pair.url, KEY, MODEL) as load:
        pair.until(lambda: len(load.outcomes) > 12)
        cut = time.monotonic()
        pair.machines["serve-2"].cut()
        pair.until(lambda: set(pair.serving().values()) == {"serve-1"}, 120)
        print(f"it was given up after {time.monotonic() - cut:.1f} s")
        known = time.monotonic()
        pair.until(lambda: load.complete_since(known) > 12)
        pair.machines["serve-2"].heal()
        pair.until(lambda: set(pair.serving().values()) == TWO, 300)
        print(f"two replicas were back {time.monotonic() - cut:.1f} s after the cut")
    report("a node was cut off", load)
    assert load.count()["cut"] == 0
    assert len(load.failed()) <= 3 * load.clients
    assert all(outcome.began < known for outcome in load.failed())
    assert max(outcome.ended - outcome.began for outcome in load.outcomes) < 90
    assert recorded(pair, load.outcomes) == load.answered()


def test_a_node_that_is_drained_fails_nobody(cluster: Cluster):
    """Its replica answers until another node has taken over, which may have to come first, and ends what it began."""
    cluster.deploy(replicas=(1, 2))
    (place,) = cluster.until(lambda: len(found := set(cluster.serving().values())) == 1 and found, 240)
    with under_load(cluster.url, KEY, MODEL, clients=3) as load:
        cluster.until(lambda: len(load.outcomes) > 6)
        cluster.ray(
            f".venv/bin/ray drain-node --address 127.0.0.1:6379 --node-id {cluster.nodes()[place]} --reason "
            "DRAIN_NODE_REASON_PREEMPTION --reason-message maintenance --deadline-remaining-seconds 300"
        )
        drained = time.monotonic()
        cluster.until(lambda: place not in cluster.serving().values() and cluster.serving(), 240)
        print(f"another node had taken over {time.monotonic() - drained:.1f} s after the drain")
        cluster.machines[place].run("cd ~/mindfu && .venv/bin/ray stop")  # and now it may be switched off
        stopped = time.monotonic()
        cluster.until(lambda: load.complete_since(stopped) > 6)
    report("a node was drained", load)
    assert load.failed() == []
    assert recorded(cluster, load.outcomes) == load.answered()
