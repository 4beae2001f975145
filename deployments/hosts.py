"""Machines of your own as a Ray cluster: a node provider for `ray up` whose hosts are in pools, one for each node type.

    provider:
      type: external
      module: deployments.hosts.HostPool
      pools: {head: [10.0.0.1], gpu-serve: [10.0.0.11, 10.0.0.12]}      # node type → addresses
      ssh: {user: ubuntu, key: ~/.ssh/id_ed25519}
      stop: ~/mindfu/.venv/bin/ray stop

Ray's own `local` provider has one kind of node, whose resources it learns only once a node has joined: nothing that
asks for a GPU would ever bring one. Here a node type says what its hosts have, so the autoscaler knows what to ask for.

A host is taken by being noted, and given back by `stop`, which runs over SSH. Notes are a file of the machine that
decides: where `ray up` runs for the head, the head itself for all others. `ray down` stops every host of every pool.
"""

import json
import logging
import secrets
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    STATUS_UP_TO_DATE,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from app.errors import Misconfigured

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")  # what `ray up` leaves on the head, and nowhere else
BOOTSTRAP_KEY = Path("~/ray_bootstrap_key.pem")  # likewise: with it the head reaches the others
STOP_TIMEOUT_S = 60.0
AGAIN = "#"
HEAD = "head"  # the pool of the one host that is always there

log = logging.getLogger(__name__)

Tags = dict[str, str]


class HostPool(NodeProvider):  # type: ignore[misc]  # Ray has no types
    """A node's id is its host's address, marked when the host is taken again. Used from several threads."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._pools: dict[str, list[str]] = provider_config["pools"]
        self._file = Path(provider_config.get("state") or tempfile.gettempdir()) / f"mindfu-hosts-{cluster_name}.json"
        self._lock, self._file_lock = threading.RLock(), FileLock(self._file.with_suffix(".lock"))
        self._let_go: set[str] = set()  # hosts, by this process
        self._used: set[str] = set()  # hosts that it has let go once
        self._silent: dict[str, float] = {}  # when a host did not answer last, Unix time
        if BOOTSTRAP.expanduser().exists() and _is_here(self._pools[HEAD][0]):
            self._note_head()

    def non_terminated_nodes(self, tag_filters: Tags) -> list[str]:
        """Hosts that are taken."""
        return [host for host, tags in self._read().items() if tag_filters.items() <= tags.items()]

    def nodes_for_teardown(self, tag_filters: Tags) -> list[str]:
        """Every host of that kind that we have not let go yet: the machine where `ray down` runs does not know which of
        them the head took.
        """
        kind = tag_filters.get(TAG_RAY_NODE_KIND)
        heads = set(self._pools[HEAD])
        hosts = {host for pool in self._pools.values() for host in pool}
        return sorted({NODE_KIND_HEAD: heads, NODE_KIND_WORKER: hosts - heads}.get(kind or "", hosts) - self._let_go)

    def is_running(self, node_id: str) -> bool:
        """Whether it is taken."""
        return node_id in self._read()

    def is_terminated(self, node_id: str) -> bool:
        """Whether it is free."""
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> Tags:
        """Ray's notes on it."""
        return self._read().get(node_id, {})

    def set_node_tags(self, node_id: str, tags: Tags) -> None:
        """Add to them."""
        with self._change() as taken:
            taken.setdefault(node_id, {}).update(tags)

    def external_ip(self, node_id: str) -> str:
        """The host's address."""
        return socket.gethostbyname(_host(node_id))

    def internal_ip(self, node_id: str) -> str:
        """The same: the hosts reach each other by what stands in the pools."""
        return socket.gethostbyname(_host(node_id))

    def create_node(self, node_config: dict[str, Any], tags: Tags, count: int) -> dict[str, Any]:
        """Take hosts of the pool that has the node type's name, those that did not answer of late at last.

        Raises NodeLaunchException where too few are free.
        """
        del node_config
        name = tags[TAG_RAY_USER_NODE_TYPE]
        pool = self._pools.get(name, [])
        with self._change() as taken:
            away = set(map(_host, taken))
            free = sorted((host for host in pool if host not in away), key=lambda host: self._silent.get(host, 0.0))
            if len(free) < count:
                told = f"{count} hosts of the pool '{name}' are wanted, {len(free)} of {len(pool)} are free"
                raise NodeLaunchException("InsufficientHosts", told, None)
            nodes = [self._node(host) for host in free[:count]]
            taken.update({node: dict(tags) for node in nodes})
            self._let_go.difference_update(free[:count])
        return {node: {} for node in nodes}

    def terminate_node(self, node_id: str) -> dict[str, Any]:
        """Stop Ray on the host, and let it go. One that does not answer is let go as well: it may be switched off."""
        ssh, host = self.provider_config["ssh"], _host(node_id)
        key = BOOTSTRAP_KEY if BOOTSTRAP_KEY.expanduser().exists() else Path(ssh["key"])
        options = ("BatchMode=yes", "ConnectTimeout=10", "StrictHostKeyChecking=accept-new")
        command = ["ssh", *(part for option in options for part in ("-o", option)), "-i", str(key.expanduser())]
        try:
            subprocess.run(  # noqa: S603 - of the cluster's own configuration
                [*command, "-p", str(ssh.get("port", 22)), f"{ssh['user']}@{host}", self.provider_config["stop"]],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=True,
                timeout=STOP_TIMEOUT_S,
            )
            self._silent.pop(host, None)
        except (subprocess.SubprocessError, OSError) as error:
            log.warning("Ray was not stopped on %s, which is free all the same: %s", host, error)
            self._silent[host] = time.time()
        with self._change() as taken:
            taken.pop(node_id, None)
            self._let_go.add(host)
            self._used.add(host)
        return {node_id: {}}

    def terminate_nodes(self, node_ids: list[str]) -> dict[str, Any]:
        """Several at the same time: each may have to be waited for."""
        with ThreadPoolExecutor(max(len(node_ids), 1)) as threads:
            return {
                host: told for answer in threads.map(self.terminate_node, node_ids) for host, told in answer.items()
            }

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """The configuration itself. Raises Misconfigured where pools and node types do not go together."""
        for problem in problems(cluster_config):
            raise Misconfigured("provider.pools", problem, "See cluster/hosts.yaml.")
        return cluster_config

    def _node(self, host: str) -> str:
        """An id that no node had here: the autoscaler would take one that comes back for the one that left."""
        return f"{host}{AGAIN}{secrets.token_hex(3)}" if host in self._used else host

    def _note_head(self) -> None:
        """The head knows of itself: it was noted where `ray up` ran. Notes of before are of nodes that are gone."""
        host, began = self._pools[HEAD][0], BOOTSTRAP.expanduser().stat().st_mtime
        with self._change() as taken:
            if self._file.exists() and self._file.stat().st_mtime < began:
                taken.clear()
            taken.setdefault(host, {
                TAG_RAY_NODE_KIND: NODE_KIND_HEAD,
                TAG_RAY_USER_NODE_TYPE: HEAD,
                TAG_RAY_NODE_NAME: f"ray-{self.cluster_name}-head",
                TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE,
            })  # fmt: skip

    def _read(self) -> dict[str, Tags]:
        with self._lock, self._file_lock:
            taken: dict[str, Tags] = json.loads(self._file.read_text()) if self._file.exists() else {}
            return taken

    @contextmanager
    def _change(self) -> Iterator[dict[str, Tags]]:
        """Change the notes; all or nothing."""
        with self._lock, self._file_lock:
            taken = self._read()
            yield taken
            part = self._file.with_suffix(".part")
            part.write_text(json.dumps(taken))
            part.replace(self._file)


def problems(config: dict[str, Any]) -> list[str]:
    """What does not go together in the pools of a cluster's configuration."""
    provider, types = config["provider"], config.get("available_node_types") or {}
    pools: dict[str, list[str]] = provider.get("pools") or {}
    found = [f"there is no '{name}'" for name in ("ssh", "stop") if not provider.get(name)]
    if config.get("head_node_type") != HEAD or len(pools.get(HEAD) or ()) != 1:
        found.append(f"the pool '{HEAD}' must have one host, and head_node_type be '{HEAD}'")
    if unlike := sorted(pools.keys() ^ types.keys()):
        found.append(f"pools and node types must have the same names, but {', '.join(unlike)} is in one of them only")
    hosts = [host for pool in pools.values() for host in pool]
    found += [f"{host} is in several pools" for host in sorted({host for host in hosts if hosts.count(host) > 1})]
    for name in pools.keys() & types.keys() - {HEAD}:
        wanted, there = types[name].get("max_workers", config.get("max_workers", 0)), len(pools[name])
        if wanted > there:
            found.append(f"max_workers of '{name}' is {wanted}, its pool has {there} hosts")
        if not types[name].get("resources"):
            found.append(f"'{name}' has no resources, so nothing that is asked for would bring one")
    return found


def _host(node_id: str) -> str:
    return node_id.partition(AGAIN)[0]


def _is_here(address: str) -> bool:
    """Whether it is an address of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True
