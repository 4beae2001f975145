"""A cluster of machines of our own, brought up by `ray up` over SSH from cluster/hosts.yaml, for all tests here."""

import json
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from tempfile import mkdtemp
from typing import Any

import httpx
import pytest
import yaml

from app.postgres_home import binaries
from tests.gguf_factory import random_model
from tests.machines import BRIDGE, DESK, HOME, Machine, machines, missing

ROOT = Path(__file__).parents[2]
CODE = ("app", "deployments", "train", "cluster", "params.yaml", "pyproject.toml")
SHARED = ("adapters", "datasets", "runs")
HOSTS = ("head", "serve-1", "serve-2", "train-1", "desk")
MODEL, KEY, PORT = "tiny", "mf-test-key", 5499
IDLE_MINUTES = 0.15  # then a node leaves
LLM = "LlamaCpp"


@dataclass
class Cluster:
    """Machines by name. folder: what they all see."""

    machines: dict[str, Machine]
    folder: Path
    url: str
    args: dict[str, Any] = field(default_factory=dict)  # of the graph that is served, beside its model
    replicas: tuple[int, int] = (0, 0)  # of the model, least and most
    release: str = ""  # the URI of its code; empty: what `ray up` brought
    everywhere: bool = False  # whether gateways are on each node, not on the head alone
    _server: subprocess.Popen[bytes] | None = None

    @property
    def head(self) -> Machine:
        return self.machines["head"]

    def http(self) -> httpx.Client:
        """A client with the key."""
        return httpx.Client(base_url=self.url, timeout=120, headers={"authorization": f"Bearer {KEY}"})

    def ray(self, command: str, timeout_s: float = 120) -> str:
        """A command on the head, in the environment of every Ray."""
        return self.head.run(
            f"cd ~/mindfu && . cluster/environment.sh && RAY_ADDRESS=127.0.0.1:6379 {command}", timeout_s
        )

    def nodes(self) -> dict[str, str]:
        """Ids of the living nodes, by the name of their machine."""
        script = (
            "import ray, json; ray.init('auto', logging_level='error', log_to_driver=False); "
            "print(json.dumps({n['NodeManagerAddress']: n['NodeID'] for n in ray.nodes() if n['Alive']}))"
        )
        told = json.loads(self.ray(f'.venv/bin/python -c "{script}"').splitlines()[-1])
        names = {machine.address: name for name, machine in self.machines.items()}
        return {names[address]: node for address, node in told.items()}

    def serve(self) -> None:
        """`mindfu serve` on the head, until it answers."""
        command = (
            "cd ~/mindfu && . cluster/environment.sh && RAY_ADDRESS=auto exec .venv/bin/mindfu serve cluster/serve.yaml"
        )
        log = self.folder / "serve.log"
        server = self._server = self.head.start(command, log)
        self.until(
            lambda: "MindFu answers" in log.read_text() or (server.poll() is not None and pytest.fail(log.read_text())),
            240,
        )

    def stop(self) -> None:
        """POST /shutdown, which ends it."""
        with self.http() as http:
            http.post("/shutdown").raise_for_status()
        self.ended()

    def ended(self) -> None:
        """Wait for its end."""
        assert self._server is not None
        self._server.wait(90)

    def serving(self, part: str = LLM) -> dict[str, str]:
        """The machine of each replica of a part that runs, by its id."""
        details = json.loads(self.ray('curl -sf -H "authorization: Bearer $(cat ~/.ray/auth_token)" '
                                      "http://127.0.0.1:8265/api/serve/applications/"))  # fmt: skip
        deployments = details["applications"]["mindfu"]["deployments"]
        replicas = deployments.get(part, {"replicas": []})[
            "replicas"
        ]  # Serve tells of none while it builds the graph anew
        names = {machine.address: name for name, machine in self.machines.items()}
        return {one["replica_id"]: names[one["node_ip"]] for one in replicas if one["state"] == "RUNNING"}

    def write(self, *, replicas: tuple[int, int], args: dict[str, Any] | None = None, release: str = "") -> None:
        """Say what is to be served: of the model, least and most replicas; the rest stays unless it is given."""
        self.args, self.release = self.args if args is None else args, release or self.release
        self.replicas = replicas
        text = yaml.safe_dump(graph(replicas, self.args, self.release, everywhere=self.everywhere))
        self.head.run(f"cat > ~/mindfu/cluster/serve.yaml <<'EOF'\n{text}\nEOF")

    def deploy(self, *, replicas: tuple[int, int], args: dict[str, Any] | None = None, release: str = "") -> None:
        """Say it, check it, and have it served, as people do. Returns at once."""
        self.write(replicas=replicas, args=args, release=release)
        self.ray(".venv/bin/mindfu check cluster/serve.yaml && .venv/bin/serve deploy cluster/serve.yaml")

    def until(self, found: Callable[[], Any], limit_s: float = 120) -> Any:
        """Wait until something is so, and say what it is."""
        deadline = time.monotonic() + limit_s
        while not (told := found()):
            if time.monotonic() > deadline:
                pytest.fail(f"not within {limit_s:.0f} s\n{self.logs()}")
            time.sleep(0.5)
        return told

    def logs(self) -> str:
        """What the head says of itself."""
        return self.head.run(
            "tail -n 40 ~/mindfu/.mindfu/serve.log; tail -n 60 /tmp/ray/session_latest/logs/monitor*.log "
            "/tmp/ray/session_latest/logs/monitor.* /tmp/ray/session_latest/logs/serve/controller*.log 2>&1 || true"
        )


def graph(replicas: tuple[int, int], args: dict[str, Any], release: str, *, everywhere: bool) -> dict[str, Any]:
    """cluster/serve.yaml with a tiny model that needs no GPU, and less patience."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())
    (application,) = config["applications"]
    llm = {"model": f"{HOME}/mindfu/models/tiny.gguf", "name": MODEL, "window": 2048, "slots": 8, "threads": 1}
    application["args"] = {"llm": llm, "gateway": {"wake_wait_s": 60}, **args}
    application["runtime_env"] = {"working_dir": release} if release else {}
    model = next(one for one in application["deployments"] if one["name"] == LLM)
    model["autoscaling_config"] |= {
        "min_replicas": replicas[0], "max_replicas": replicas[1], "downscale_delay_s": 5, "upscale_delay_s": 1,
        "look_back_period_s": 3, "metrics_interval_s": 1,
    }  # fmt: skip
    model["ray_actor_options"] = {"num_cpus": 5, "resources": {"serve": 1}}  # of 8: one to a node
    if everywhere:
        config["proxy_location"] = "EveryNode"
        gateway = next(one for one in application["deployments"] if one["name"] == "Gateway")
        gateway |= {"num_replicas": 3, "max_replicas_per_node": 1, "ray_actor_options": {"num_cpus": 0.3}}
    return config


def launcher(hosts: dict[str, Machine], folder: Path) -> dict[str, Any]:
    """cluster/hosts.yaml for these machines: what is installed on them is there already."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "cluster" / "hosts.yaml").read_text())
    key = str(folder / "keys" / "user")
    pools = {kind: [one.address for name, one in hosts.items() if name.startswith(start)]
             for kind, start in (("head", "head"), ("gpu-serve", "serve"), ("gpu-train", "train"))}  # fmt: skip
    config["provider"] |= {"pools": pools, "ssh": {"user": "root", "key": key}}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": key}
    config["idle_timeout_minutes"] = IDLE_MINUTES
    config["file_mounts"] = {
        f"{HOME}/mindfu": str(folder / "checkout"),
        f"{HOME}/.ray/auth_token": str(folder / "auth_token"),
        f"{HOME}/.config/mindfu/secrets.sh": str(folder / "secrets.sh"),
    }
    shared = [f"ln -sfn {folder}/shared/{part} .mindfu/{part}" for part in SHARED]  # what node.sh does with a bucket
    linked = ["mkdir -p .mindfu", f"ln -sfn {ROOT}/.venv .venv", *shared, "chmod 600 ~/.ray/auth_token"]
    config["setup_commands"] = [" && ".join(["cd ~/mindfu", *linked])]
    config["head_setup_commands"] = []
    for kind in config["available_node_types"].values():
        kind.pop("worker_setup_commands", None)
        kind["resources"]["object_store_memory"] = 100_000_000
    return config


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """What all machines see; each has a /tmp of its own."""
    folder = Path(mkdtemp(prefix="mindfu-cluster-", dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def hosts(folder: Path) -> Iterator[dict[str, Machine]]:
    """The machines, and a PostgreSQL on this one that all of them reach."""
    if reason := missing():
        pytest.skip(f"{reason}. What can be tried on loopback addresses is: tests/acceptance/apart/test_from_zero.py")
    with machines(HOSTS, folder) as hosts, postgres(folder / "postgres"):
        yield hosts
    links = subprocess.run(["ip", "-o", "link"], check=True, capture_output=True, text=True).stdout
    assert BRIDGE not in links
    assert "mf-" not in links


@pytest.fixture(scope="session")
def cluster(folder: Path, hosts: dict[str, Machine]) -> Iterator[Cluster]:
    """`ray up`, `mindfu serve`; at the end `ray down`, which leaves nothing. The model has no replica yet."""
    prepare(folder)
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(launcher(hosts, folder)))
    desk, started = hosts["desk"], time.monotonic()
    desk.run(f"mkdir -p ~/.ray && cp {folder}/auth_token ~/.ray/ && {ROOT}/.venv/bin/mindfu check {file}")
    desk.run(f"{ROOT}/.venv/bin/ray up -y --no-config-cache {file}", timeout_s=300)
    print(f"\nray up took {time.monotonic() - started:.1f} s")
    cluster = Cluster(hosts, folder, f"http://{hosts['head'].address}:11434")
    cluster.write(replicas=(0, 2))
    cluster.serve()
    print(f"and MindFu answered {time.monotonic() - started:.1f} s after its beginning")
    yield cluster
    started = time.monotonic()
    desk.run(f"{ROOT}/.venv/bin/ray down -y {file}", timeout_s=300)
    cluster.ended()
    print(f"ray down took {time.monotonic() - started:.1f} s")
    deadline = time.monotonic() + 30
    while (
        there := {name: found for name, host in hosts.items() if (found := left(host))}
    ) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert there == {}


def left(host: Machine) -> list[str]:
    """Processes beside its SSH server, and shared memory."""
    told = host.run("ps -eo stat=,pid=,args= --sort=pid; ls -d /dev/shm/* 2> /dev/null || true").splitlines()
    own = ("sshd", " ps -eo", "bash -c cd && ps")
    return [line for line in told if not line.startswith("Z") and not any(word in line for word in own)]


def prepare(folder: Path) -> None:
    """What `ray up` brings to the machines: this checkout with a model, the token, the secrets."""
    checkout = folder / "checkout"
    for name in CODE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        checkout.mkdir(exist_ok=True)
        copy(ROOT / name, checkout / name)
    for part in SHARED:
        (folder / "shared" / part).mkdir(parents=True)
    (checkout / "models").mkdir()
    random_model(checkout / "models" / "tiny.gguf")
    (folder / "auth_token").write_text(token_hex(32))
    secrets = {
        "POSTGRES_URL": f"postgresql://postgres@{DESK}:{PORT}/postgres",
        "KEY_PEPPER": token_hex(32),
        "API_KEY": KEY,
    }
    lines = [f"MINDFU_{name}={value}\n" for name, value in secrets.items()]
    (folder / "secrets.sh").write_text("".join([*lines, f"export PYTHONPATH={HOME}/mindfu\n"]))  # not the shared one's


@contextmanager
def postgres(folder: Path) -> Iterator[None]:
    """A server as `nobody`, which trusts the machines."""
    folder.mkdir()
    os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
    data, options = str(folder / "data"), f"-p {PORT} -c listen_addresses={DESK} -c unix_socket_directories={folder}"

    def tool(name: str, *arguments: str) -> None:
        command = [binaries() / name, "-D", data, *arguments]
        subprocess.run(command, check=True, user="nobody", stdout=subprocess.DEVNULL, cwd=folder)

    tool("initdb", "-U", "postgres", "--auth=trust", "-N")
    with (folder / "data" / "pg_hba.conf").open("a") as file:
        file.write(f"host all all {DESK}/24 trust\n")
    tool("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
    try:
        yield
    finally:
        tool("pg_ctl", "-m", "fast", "stop")
