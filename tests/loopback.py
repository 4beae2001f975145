"""A cluster on this machine alone, without a right of root: cluster.yaml's own node types, whose GPUs are only counted.

    with loopback_cluster(folder, postgres_url) as ray:
        ray.nodes()        # {"head": …}; others come when something asks for their kind, and go when nothing does

Each node is a Ray of its own on an address of its own, 127.0.0.1 and those behind it. Ray's autoscaler decides, as
after `ray up`; Ray's own provider for tests starts and stops nodes in the place of AWS. Nodes share the file system and
the table of processes, and no cable can be pulled: tests/machines.py has machines that are apart.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import httpx
import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider

from tests.aws import ROOT, bootstrapped
from tests.ports import free_port

KEY = "mf-test-key"
IDLE_MINUTES = 0.1  # then a node leaves
COMMANDS = (
    "cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip
HEAD_TYPE = "ray.head.default"  # as the provider calls it
STORE_BYTES = 100_000_000  # a fourth above the least that Ray allows
FAKED = {  # what Ray reads where nodes are faked and the autoscaler is that of `ray up`
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "PYTHONPATH": str(ROOT),
}


class Addressed(FakeMultiNodeProvider):  # type: ignore[misc]  # Ray has no types
    """Gives each node the next address."""

    def _create_node_with_resources_and_labels(self, *asked: Any) -> None:
        address = f"127.0.0.{self._next_node_id + 2}"
        with self.lock, patch("ray.util.get_node_ip_address", lambda: address):
            super()._create_node_with_resources_and_labels(*asked)


@dataclass(frozen=True)
class Loopback:
    """The cluster. home: of its user; address: of GCS; dashboard: a URL; log: of Ray; limits: most nodes, by kind."""

    env: Mapping[str, str]
    home: Path
    address: str
    dashboard: str
    log: Path
    limits: Mapping[str, int]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, command: str, log: Path) -> subprocess.Popen[bytes]:
        """A command on the head, in the environment of every Ray."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                ["bash", "-c", f". ~/mindfu/cluster/environment.sh && exec {command}"],
                stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=dict(self.env), cwd=ROOT,
            )  # fmt: skip
        self.started.append(process)
        return process

    def nodes(self) -> dict[str, str]:
        """The living nodes: their kind, by their address."""
        return {one["node_ip"]: one["labels"].get("kind", "head") for one in self._living()}

    def _living(self) -> list[dict[str, Any]]:
        return [one for one in self.ask("/api/v0/nodes")["data"]["result"]["result"] if one["state"] == "ALIVE"]

    def ask(self, path: str) -> Any:
        """What the dashboard says."""
        headers = {"authorization": f"Bearer {(self.home / '.ray' / 'auth_token').read_text()}"}
        return httpx.get(f"{self.dashboard}{path}", headers=headers, timeout=30).raise_for_status().json()

    def drain(self, address: str) -> None:
        """Have what runs on a node move to others."""
        (node,) = (one["node_id"] for one in self._living() if one["node_ip"] == address)
        why = "--reason DRAIN_NODE_REASON_PREEMPTION --reason-message maintenance --deadline-remaining-seconds 300"
        draining = self.start(f"ray drain-node --address {self.address} --node-id {node} {why}", self.log)
        assert draining.wait(60) == 0, self.log.read_text()

    def kill(self, address: str) -> None:
        """A node's raylet, and all that it started, at once."""
        _kill(self._raylets(f"--node_ip_address={address}"))

    def end(self) -> None:
        """Kill every process of it: its nodes outlive the monitor that began them."""
        ours = [psutil.Process(one.pid) for one in self.started if one.poll() is None]
        while found := [*ours, *self._raylets()]:
            _kill(found)
            ours = []
        for one in self.started:
            one.wait()

    def _raylets(self, *words: str) -> list[psutil.Process]:
        wanted = {f"--gcs-address={self.address}", *words}
        return [one for one in psutil.process_iter(["cmdline"]) if wanted <= set(one.info["cmdline"] or ())]


def _kill(roots: list[psutil.Process]) -> None:
    family = list(roots)
    for root in roots:
        with suppress(psutil.Error):
            family += root.children(recursive=True)
    for process in family:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(family, timeout=20)


@contextmanager
def loopback_cluster(folder: Path, postgres_url: str) -> Iterator[Loopback]:
    """Its head, with cluster/environment.sh as cluster.yaml has it. At the end nothing of it runs: it is killed."""
    with bootstrapped(folder / "aws") as aws:
        kinds = aws["available_node_types"]
    gcs = free_port()
    dashboard = next(port for _ in range(99) if (port := free_port()) != gcs)
    address = f"127.0.0.1:{gcs}"
    (file := folder / "cluster.json").write_text(json.dumps(faked(aws, address)))
    home = _home(folder / "home", postgres_url)
    env = {**os.environ, **FAKED, "HOME": str(home)}
    env |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "RAY_ADDRESS": address}
    own = dict(kinds["head"]["resources"])
    cluster = Loopback(
        env,
        home,
        address,
        f"http://127.0.0.1:{dashboard}",
        folder / "ray.log",
        {k: v["max_workers"] for k, v in kinds.items()},
    )
    short = TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)  # sockets lie there
    with short as scratch:
        head = cluster.start(
            f"ray start --head --block --node-ip-address=127.0.0.1 --port={gcs} --temp-dir={scratch} "
            f"--num-cpus={own['CPU']} --resources='{json.dumps({'head': own['head']})}' "
            f"--object-store-memory={STORE_BYTES} --autoscaling-config={file} --disable-usage-stats "
            f"--dashboard-host=127.0.0.1 --dashboard-port={dashboard} --dashboard-agent-listen-port=0",
            cluster.log,
        )
        try:
            _await_head(cluster, head)
            yield cluster
        finally:
            cluster.end()


def _await_head(cluster: Loopback, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and head.poll() is None:
        with suppress(httpx.HTTPError):
            if cluster.nodes():
                return
        time.sleep(0.2)
    raise AssertionError(cluster.log.read_text())


def faked(aws: dict[str, Any], address: str) -> dict[str, Any]:
    """cluster.yaml, but for who starts its nodes, and for their memory, which is not there."""
    kinds = {
        HEAD_TYPE if name == "head" else name: {
            "resources": {kind: many for kind, many in told["resources"].items() if kind != "memory"}
            | {"object_store_memory": STORE_BYTES},
            "min_workers": told.get("min_workers", 0),
            "max_workers": told["max_workers"],
            "node_config": {},
            "labels": {"kind": name},
        }
        for name, told in aws["available_node_types"].items()
    }
    return {
        **{key: aws[key] for key in ("cluster_name", "max_workers", "upscaling_speed", "auth")},
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": {
            "type": "external", "module": "tests.loopback.Addressed", "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID, "launch_multiple": True,
        },
        "head_node_type": HEAD_TYPE,
        "available_node_types": kinds,
        "file_mounts": {},
        **{key: [] for key in COMMANDS},
    }  # fmt: skip


def _home(home: Path, postgres_url: str) -> Path:
    """What `ray up` would have brought: the checkout's cluster/, Ray's token and the secrets."""
    (home / "mindfu").mkdir(parents=True)
    (home / "mindfu" / "cluster").symlink_to(ROOT / "cluster")
    token, secrets = home / ".ray" / "auth_token", home / ".config" / "mindfu" / "secrets.sh"
    for file, text in (
        (token, token_hex(32)),
        (secrets, f"MINDFU_API_KEY={KEY}\nMINDFU_KEY_PEPPER={token_hex(32)}\nMINDFU_POSTGRES_URL='{postgres_url}'\n"),
    ):
        file.parent.mkdir(parents=True)
        file.touch(0o600)
        file.write_text(text)
    return home
