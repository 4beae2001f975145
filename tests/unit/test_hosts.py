"""Machines of one's own, in pools: which host is taken, and what is refused."""

import copy
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from app.errors import Misconfigured
from deployments import hosts
from deployments.hosts import HostPool, problems

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "cluster" / "hosts.yaml").read_text())
POOLS = {"head": ["127.0.0.1"], "gpu-serve": ["127.0.0.2", "127.0.0.3"], "gpu-train": ["127.0.0.4"]}
STOPPED = "stopped"


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostPool:
    """Of a machine that is not the head; what SSH is asked to do stands in a file."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / STOPPED}\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    return made(tmp_path)


def made(state: Path) -> HostPool:
    ssh = {"user": "ubuntu", "key": "~/.ssh/id"}
    return HostPool({"pools": POOLS, "ssh": ssh, "stop": "ray stop", "state": str(state)}, "mindfu")


def tags(kind: str, node_type: str) -> dict[str, str]:
    return {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: node_type}


def test_a_host_of_the_right_pool_is_taken_and_remembered(provider: HostPool, tmp_path: Path):
    """Also by another process, which has the same notes."""
    assert provider.create_node({}, tags(NODE_KIND_WORKER, "gpu-serve"), 1) == {"127.0.0.2": {}}
    provider.set_node_tags("127.0.0.2", {TAG_RAY_NODE_STATUS: "up-to-date"})
    other = made(tmp_path)
    assert other.non_terminated_nodes(tags(NODE_KIND_WORKER, "gpu-serve")) == ["127.0.0.2"]
    assert other.non_terminated_nodes(tags(NODE_KIND_WORKER, "gpu-train")) == []
    assert other.node_tags("127.0.0.2")[TAG_RAY_NODE_STATUS] == "up-to-date"
    assert (other.is_running("127.0.0.2"), other.is_terminated("127.0.0.3")) == (True, True)
    assert other.internal_ip("127.0.0.2") == other.external_ip("127.0.0.2") == "127.0.0.2"


def test_more_than_there_are_is_refused_with_both_numbers(provider: HostPool):
    """Nothing is taken then."""
    with pytest.raises(NodeLaunchException, match="3 hosts of the pool 'gpu-serve' are wanted, 2 of 2 are free"):
        provider.create_node({}, tags(NODE_KIND_WORKER, "gpu-serve"), 3)
    assert provider.non_terminated_nodes({}) == []


def test_threads_never_take_the_same_host(provider: HostPool):
    """Ray launches from several at once."""
    found: list[str] = []

    def take() -> None:
        found.extend(provider.create_node({}, tags(NODE_KIND_WORKER, "gpu-serve"), 1))

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == POOLS["gpu-serve"]


def test_a_host_that_is_let_go_stops_ray_and_can_be_taken_again(provider: HostPool, tmp_path: Path):
    """By SSH, with the key of the configuration."""
    provider.create_node({}, tags(NODE_KIND_WORKER, "gpu-train"), 1)
    provider.terminate_node("127.0.0.4")
    told = (tmp_path / STOPPED).read_text()
    assert told.endswith(f"-i {tmp_path}/.ssh/id -p 22 ubuntu@127.0.0.4 ray stop\n")
    (node,) = provider.create_node({}, tags(NODE_KIND_WORKER, "gpu-train"), 1)
    assert node.startswith("127.0.0.4#"), "the autoscaler would take the same id for the node that left"
    assert provider.internal_ip(node) == "127.0.0.4"
    assert (provider.is_running(node), provider.is_terminated("127.0.0.4")) == (True, True)
    with pytest.raises(NodeLaunchException, match="0 of 1 are free"):
        provider.create_node({}, tags(NODE_KIND_WORKER, "gpu-train"), 1)
    provider.terminate_node(node)
    assert (tmp_path / STOPPED).read_text().endswith("ubuntu@127.0.0.4 ray stop\n")
    assert provider.is_terminated(node)


def test_a_host_that_does_not_answer_is_let_go_all_the_same(provider: HostPool, tmp_path: Path):
    """It may be switched off."""
    (tmp_path / "bin" / "ssh").write_text("#!/bin/sh\nexit 255\n")
    provider.create_node({}, tags(NODE_KIND_WORKER, "gpu-train"), 1)
    provider.terminate_node("127.0.0.4")
    assert provider.is_terminated("127.0.0.4")


def test_a_host_that_did_not_answer_is_taken_last(provider: HostPool, tmp_path: Path):
    """Else the one that broke would be tried again and again, beside one that works."""
    ssh = (tmp_path / "bin" / "ssh").read_text()
    (tmp_path / "bin" / "ssh").write_text("#!/bin/sh\nexit 255\n")
    provider.create_node({}, tags(NODE_KIND_WORKER, "gpu-serve"), 1)
    provider.terminate_node("127.0.0.2")
    nodes = list(provider.create_node({}, tags(NODE_KIND_WORKER, "gpu-serve"), 2))
    assert [provider.internal_ip(node) for node in nodes] == ["127.0.0.3", "127.0.0.2"]
    (tmp_path / "bin" / "ssh").write_text(ssh)
    provider.terminate_nodes(nodes)
    (node,) = provider.create_node({}, tags(NODE_KIND_WORKER, "gpu-serve"), 1)
    assert provider.internal_ip(node) == "127.0.0.2", "it answered again"


def test_ray_down_reaches_every_host(provider: HostPool):
    """Whoever runs it does not know which ones the head took."""
    assert provider.nodes_for_teardown({TAG_RAY_NODE_KIND: NODE_KIND_HEAD}) == POOLS["head"]
    workers = sorted(POOLS["gpu-serve"] + POOLS["gpu-train"])
    assert provider.nodes_for_teardown({TAG_RAY_NODE_KIND: NODE_KIND_WORKER}) == workers


def test_ray_down_comes_to_an_end(provider: HostPool, tmp_path: Path):
    """It asks what remains until nothing does; and what was let go can be taken again."""
    everything = provider.nodes_for_teardown({})
    provider.terminate_nodes(everything)
    assert provider.nodes_for_teardown({}) == []
    assert len((tmp_path / STOPPED).read_text().splitlines()) == len(everything)
    provider.create_node({}, tags(NODE_KIND_WORKER, "gpu-train"), 1)
    assert provider.nodes_for_teardown({}) == POOLS["gpu-train"]


def test_the_head_knows_of_itself(provider: HostPool, tmp_path: Path):
    """It was taken elsewhere; and with its own key it reaches the others."""
    (tmp_path / "ray_bootstrap_config.yaml").touch()
    (tmp_path / "ray_bootstrap_key.pem").touch()
    head = made(tmp_path)
    assert head.non_terminated_nodes({TAG_RAY_NODE_KIND: NODE_KIND_HEAD}) == POOLS["head"]
    head.create_node({}, tags(NODE_KIND_WORKER, "gpu-train"), 1)
    head.terminate_node("127.0.0.4")
    assert f"-i {tmp_path}/ray_bootstrap_key.pem" in (tmp_path / STOPPED).read_text()


def test_a_head_that_was_started_anew_forgets_the_nodes_of_before(provider: HostPool, tmp_path: Path):
    """They went with it; one that only looks again forgets nothing."""
    bootstrap = tmp_path / "ray_bootstrap_config.yaml"
    bootstrap.touch()
    head = made(tmp_path)
    head.create_node({}, tags(NODE_KIND_WORKER, "gpu-train"), 1)
    assert made(tmp_path).is_running("127.0.0.4")
    later = time.time() + 60
    os.utime(bootstrap, (later, later))
    assert made(tmp_path).non_terminated_nodes({}) == POOLS["head"]


def test_another_machine_is_not_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever files lie there."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ray_bootstrap_config.yaml").touch()
    monkeypatch.setitem(POOLS, "head", ["192.0.2.1"])
    assert made(tmp_path).non_terminated_nodes({}) == []
    assert not hosts._is_here("192.0.2.1")
    assert hosts._is_here(socket.gethostbyname("localhost"))


def changed(**provider: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    config["provider"] |= provider
    return config


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (changed(stop=""), "there is no 'stop'"),
        (changed(pools=CONFIG["provider"]["pools"] | {"head": ["10.0.0.1", "10.0.0.2"]}), "'head' must have one host"),
        (changed(pools=CONFIG["provider"]["pools"] | {"tpu": ["10.0.0.9"]}), "but tpu is in one of them only"),
        (changed(pools=CONFIG["provider"]["pools"] | {"gpu-train": ["10.0.0.11"]}), "10.0.0.11 is in several pools"),
        (
            changed(pools=CONFIG["provider"]["pools"] | {"gpu-serve": []}),
            "max_workers of 'gpu-serve' is 2, its pool has 0",
        ),
        (changed() | {"head_node_type": "gpu-serve"}, "head_node_type be 'head'"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_started(config: dict[str, Any], said: str):
    """By `ray up` as by `mindfu check`."""
    assert said in " ".join(problems(config))
    with pytest.raises(Misconfigured):
        HostPool.bootstrap_config(config)


def test_the_shipped_pools_go_together():
    """As they stand in the file."""
    assert problems(CONFIG) == []
    assert HostPool.bootstrap_config(CONFIG) is CONFIG
