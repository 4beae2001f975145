"""The files for `ray up`: what Ray takes, what MindFu's lint says, what the scripts hold."""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from app.settings import Secrets
from deployments import config, joining
from deployments.clusters import problems
from deployments.observed import HEAD, on_head
from train.recipe import Recipe

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "cluster/gcp.yaml", "cluster/hosts.yaml")
SCRIPTS = ("cluster/node.sh", "cluster/head.sh", "cluster/environment.sh")
BIN = Path(sys.executable).parent


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_every_variant(name: str, tmp_path: Path):
    """By the checks that `ray up` begins with; and `mindfu check` has nothing to say either."""
    validate_config(prepare_config(read(name)))
    assert config.problems(ROOT / name, Secrets(), tmp_path) == []


@pytest.mark.parametrize("name", FILES)
def test_gpu_nodes_come_from_zero_and_go(name: str):
    """None is there until something asks for it; training may not take all, and each kind says what it has."""
    cluster = read(name)
    kinds = cluster["available_node_types"]
    workers = {kind: told for kind, told in kinds.items() if kind != cluster["head_node_type"]}
    assert any("serve" in told["resources"] for told in workers.values())
    assert any("train" in told["resources"] for told in workers.values())
    assert {told.get("min_workers", 0) for told in workers.values()} == {0}
    assert all(told["max_workers"] >= 1 for told in workers.values())
    assert cluster["idle_timeout_minutes"] > 0


def test_training_on_aws_is_on_spot_and_serving_is_not():
    """A run resumes, an answer does not."""
    kinds = read("cluster.yaml")["available_node_types"]
    spot = {name for name, told in kinds.items() if "InstanceMarketOptions" in told["node_config"]}
    assert spot == {"gpu-train"}


def test_the_variants_start_nodes_alike():
    """What is fixed in one is fixed in all."""
    first, *others = (read(name) for name in FILES)
    for key in ("file_mounts", "setup_commands", "head_setup_commands", "head_start_ray_commands",
                "worker_start_ray_commands", "rsync_exclude", "head_node_type"):  # fmt: skip
        assert all(other[key] == first[key] for other in others), key


def changed(path: str, value: object) -> dict[str, Any]:
    """The AWS file with one thing changed. value None: taken away."""
    cluster = copy.deepcopy(read("cluster.yaml"))
    *above, last = path.split("/")
    place: Any = cluster
    for step in above:
        place = place[int(step) if step.isdigit() else step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return cluster


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        (changed("max_wrokers", 3), "max_wrokers"),
        (changed("available_node_types/gpu-train/min_workers", "one"), "'one' is not of type 'integer'"),
        (changed("provider/region", None), "provider.region: is missing for aws"),
        (changed("provider/type", "azure"), "'azure' is not one that MindFu knows"),
        (changed("head_node_type", "haed"), "`head_node_type` must be one of"),
        (changed("available_node_types/gpu-train/min_workers", 2), "min_workers is 2, max_workers 1"),
        (changed("provider/security_group/IpPermissions/0/FromPort", 22), "opens ports 22 to 11434; only 11434"),
        (changed("file_mounts", {}), "no ~/.ray/auth_token"),
        (changed("head_start_ray_commands", ["ray start --head"]), "sets no RAY_AUTH_MODE=token"),
        (changed("head_start_ray_commands", ["ray start --head"]), "without --disable-usage-stats"),
        (changed("head_start_ray_commands", ["ray start --head"]), "without --autoscaling-config"),
        (changed("head_start_ray_commands", ["ray start --dashboard-host=0.0.0.0"]), "the dashboard listens"),
    ],
)
def test_the_lint_names_what_is_wrong(cluster: dict[str, Any], said: str):
    """What Ray refuses, and what it would not: doors that stand open, nodes that never come."""
    assert said in " ".join(problems(cluster))


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_clean(name: str):
    """By shellcheck."""
    found = subprocess.run([BIN / "shellcheck", ROOT / name], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_nodes_get_the_environment_that_mindfu_serve_makes(tmp_path: Path):
    """What one machine is given in Python, a cluster's node is given by its script, so that both run alike."""
    (tmp_path / ".config" / "mindfu").mkdir(parents=True)
    (tmp_path / ".config" / "mindfu" / "secrets.sh").write_text("MINDFU_POSTGRES_PASSWORD=p\nMINDFU_API_KEY=k\n")
    shell = f". {ROOT}/cluster/environment.sh && env"
    nothing = {"HOME": str(tmp_path), "PATH": os.defpath}
    worker = nothing | {"RAY_HEAD_IP": "10.0.0.1", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, env=worker, check=True)
    given = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert given["MINDFU_POSTGRES_URL"] == "postgresql://mindfu:p@10.0.0.1/mindfu"
    script = "import os; from pathlib import Path; from deployments.joining import environment; "
    script += (
        f"environment(Path({str(tmp_path)!r})); print(chr(10).join(f'{{k}}={{v}}' for k, v in os.environ.items()))"
    )
    nothing |= {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=nothing, cwd=ROOT, check=True
    )
    made = dict(
        line.split("=", 1)
        for line in done.stdout.splitlines()
        if line.startswith(("RAY_", "MINDFU_", "OTEL_", "GRPC_"))
    )
    assert made.keys() - given.keys() == {"RAY_ADDRESS"}  # a cluster's commands say it themselves
    own = {"MINDFU_HOME", "MINDFU_PARAMS", "RAY_AUTH_TOKEN_PATH"}  # places
    assert {name: given[name] for name in made.keys() & given.keys() - own} == {
        name: made[name] for name in made.keys() & given.keys() - own
    }
    assert "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH" in made
    assert (
        made["GRPC_ENABLE_FORK_SUPPORT"] == "0"
    )  # of 600 children that uvloop forked beside gRPC's threads, 9 crashed
    assert joining.TRACING.items() <= made.items()


def test_the_clusters_graph_can_be_served(tmp_path: Path):
    """Every part that is placed asks for a resource that a node type has."""
    secrets = Secrets.model_validate({"api_key": "k"})
    assert config.problems(ROOT / "cluster" / "serve.yaml", secrets, tmp_path) == []
    (application,) = read("cluster/serve.yaml")["applications"]
    for name in FILES:
        there = {resource for told in read(name)["available_node_types"].values() for resource in told["resources"]}
        for deployment in application["deployments"]:
            assert deployment["ray_actor_options"]["resources"].keys() <= there


def test_training_on_a_cluster_asks_for_a_training_node():
    """By a resource that its node type alone has, on all variants; else it is told the same as on one machine."""
    told = yaml.safe_load((ROOT / "cluster" / "params.yaml").read_text())
    wanted = Recipe.model_validate(told["tune"]).resources
    del told["tune"]["resources"]
    assert told == yaml.safe_load((ROOT / "params.yaml").read_text())
    for name in FILES:
        types = read(name)["available_node_types"]
        assert [kind for kind in types if wanted.keys() <= types[kind]["resources"].keys()] == ["gpu-train"]


def test_a_node_that_is_not_the_head_is_told_by_its_resources():
    """There, an embedded PostgreSQL would be a second one."""
    nodes = [{"NodeID": "a", "Resources": {"CPU": 1, HEAD: 1.0}}, {"NodeID": "b", "Resources": {"GPU": 1}}]
    assert [on_head(nodes, node) for node in "abc"] == [True, False, False]


def test_the_docs_name_what_there_is():
    """Every file that docs/cluster.md tells of."""
    told = set(re.findall(r"`(cluster[\w./-]*\.(?:yaml|sh))`", (ROOT / "docs" / "cluster.md").read_text()))
    assert told >= {*FILES, "cluster/node.sh", "cluster/head.sh", "cluster/environment.sh", "cluster/serve.yaml"}
    assert all((ROOT / name).exists() for name in told)
