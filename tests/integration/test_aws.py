"""`ray up` on a simulated AWS: what our file makes there."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for
from ray.autoscaler.tags import NODE_KIND_HEAD, NODE_KIND_WORKER, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from tests.aws import bootstrap, bootstrapped
from train.recipe import Recipe
from train.tune import gpus_wanted

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]  # boto3's and Ray's own

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Our file after `ray up`'s preparations."""
    with bootstrapped(tmp_path_factory.mktemp("home")) as config:
        yield config


def launched(cluster: dict[str, Any], name: str, kind: str) -> dict[str, Any]:
    """An instance of a node type, as EC2 tells of it."""
    provider = _get_node_provider(cluster["provider"], cluster["cluster_name"], use_cache=False)
    tags = {TAG_RAY_NODE_KIND: kind, TAG_RAY_USER_NODE_TYPE: name, "ray-node-name": name, "ray-launch-config": "x"}
    provider.create_node(copy.deepcopy(cluster["available_node_types"][name]["node_config"]), tags, 1)
    node = provider.non_terminated_nodes({TAG_RAY_USER_NODE_TYPE: name})[-1]
    (reservation,) = boto3.client("ec2").describe_instances(InstanceIds=[node])["Reservations"]
    return reservation["Instances"][0]


def test_each_node_type_starts_and_says_what_it_has(cluster: dict[str, Any]):
    """With the GPU that Ray is to look for before there is a node; training on spot."""
    for name, kind, instance, gpus in (
        ("head", NODE_KIND_HEAD, "m7i.xlarge", None),
        ("gpu-serve-l40s", NODE_KIND_WORKER, "g6e.2xlarge", 1),
        ("gpu-serve-l4", NODE_KIND_WORKER, "g6.2xlarge", 1),
        ("gpu-train", NODE_KIND_WORKER, "g6e.4xlarge", 1),
    ):
        found = launched(cluster, name, kind)
        resources = cluster["available_node_types"][name]["resources"]
        assert (found["InstanceType"], resources.get("GPU")) == (instance, gpus)
        assert resources["CPU"] >= 4
        assert (found.get("InstanceLifecycle") == "spot") == (name == "gpu-train")


def wanted(part: str) -> dict[str, float]:
    """What a replica of a part asks Ray for (cluster/serve.yaml), or a worker that tunes (cluster/params.yaml)."""
    if part == "tune":
        recipe = Recipe.model_validate(yaml.safe_load((ROOT / "cluster" / "params.yaml").read_text())["tune"])
        assert gpus_wanted(recipe, {})
        return {"CPU": recipe.cpus, "GPU": 1, **recipe.resources}
    (application,) = yaml.safe_load((ROOT / "cluster" / "serve.yaml").read_text())["applications"]
    asked = next(one for one in application["deployments"] if one["name"] == part)["ray_actor_options"]
    return {"CPU": asked["num_cpus"], "GPU": asked.get("num_gpus", 0), **asked["resources"]}


@pytest.mark.parametrize(
    ("asked", "there", "come", "unmet"),
    [
        (["LlamaCpp"], {}, {"gpu-serve-l40s": 1}, 0),  # either kind would do; Ray takes the later name
        (["tune"], {}, {"gpu-train": 1}, 0),
        (["LlamaCpp", "tune"], {}, {"gpu-serve-l40s": 1, "gpu-train": 1}, 0),  # neither takes the other's
        (["tune", "tune"], {}, {"gpu-train": 1}, 1),  # one at a time, as max_workers says
        (["tune"], {"gpu-train": 1}, {}, 1),
        (["LlamaCpp"] * 6, {}, {"gpu-serve-l4": 2, "gpu-serve-l40s": 2}, 2),
        (["LlamaCpp"] * 6 + ["tune"] * 2, {}, {"gpu-serve-l4": 2, "gpu-serve-l40s": 2, "gpu-train": 1}, 3),
    ],
)
def test_what_is_asked_for_brings_its_own_kind_of_node_within_the_limits(
    cluster: dict[str, Any], asked: list[str], there: dict[str, int], come: dict[str, int], unmet: int
):
    """By the autoscaler's own reckoning, over our node types as AWS sizes them; nodes that are there are all in use."""
    kinds, limit = cluster["available_node_types"], cluster["max_workers"] + 1  # the head counts
    demands = [wanted(part) for part in asked]
    existing = {"head": 1, **there}
    found, left = get_nodes_for(kinds, existing, "head", limit - sum(existing.values()), demands, _scored)
    assert (dict(found), len(left)) == (come, unmet)


def _scored(resources: dict[str, float], demands: list[dict[str, float]], name: str) -> Any:
    return _default_utilization_scorer(resources, demands, name, node_availability_summary=None)


def doors() -> list[tuple[str, int | None, list[str], int]]:
    """Of the nodes' security group: protocol, port, networks, groups."""
    groups = boto3.client("ec2").describe_security_groups(Filters=[{"Name": "group-name", "Values": ["mindfu"]}])
    (group,) = groups["SecurityGroups"]
    rules = [
        (
            rule["IpProtocol"],
            rule.get("FromPort"),
            [who["CidrIp"] for who in rule["IpRanges"]],
            len(rule["UserIdGroupPairs"]),
        )
        for rule in group["IpPermissions"]
    ]
    return sorted(rules, key=json.dumps)


def test_only_mindfus_port_is_open_to_those_who_may_call(cluster: dict[str, Any]):
    """Beside SSH, which Ray opens, and the nodes among themselves."""
    mindfu, among = ("tcp", 11434, ["203.0.113.0/24"], 0), ("-1", None, [], 1)
    assert doors() == [among, mindfu, ("tcp", 22, ["0.0.0.0/0"], 0)]
    groups = launched(cluster, "head", NODE_KIND_HEAD)["SecurityGroups"]
    assert [group["GroupName"] for group in groups] == ["mindfu"]


def test_ssh_that_was_narrowed_stays_so(cluster: dict[str, Any]):
    """By the commands of docs/cluster.md; the next `ray up` opens nothing again."""
    assert cluster
    mindfu, among = ("tcp", 11434, ["203.0.113.0/24"], 0), ("-1", None, [], 1)
    ec2, rule = boto3.client("ec2"), {"GroupName": "mindfu", "IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    ec2.revoke_security_group_ingress(**rule, CidrIp="0.0.0.0/0")
    ec2.authorize_security_group_ingress(**rule, CidrIp="203.0.113.0/24")
    bootstrap()
    assert doors() == [among, mindfu, ("tcp", 22, ["203.0.113.0/24"], 0)]


def test_every_node_has_the_role_that_starts_nodes_and_uses_the_bucket(cluster: dict[str, Any]):
    """No key of anybody lies on a node, and Ray makes no role that may do everything."""
    for name in ("head", "gpu-train"):
        found = launched(cluster, name, NODE_KIND_WORKER)
        assert found["IamInstanceProfile"]["Arn"].endswith("instance-profile/mindfu")
    assert [role["RoleName"] for role in boto3.client("iam").list_roles()["Roles"]] == ["mindfu"]
