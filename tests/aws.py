"""cluster.yaml as `ray up` has it once AWS was asked what its machines are, on an AWS of moto's."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import moto
import pytest
import yaml
from ray.autoscaler._private.commands import _bootstrap_config

ROOT = Path(__file__).parents[1]
ASSUMED = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}


@contextmanager
def bootstrapped(home: Path) -> Iterator[dict[str, Any]]:
    """Our file after `ray up`'s preparations; the AWS, empty before but for its defaults, is there during the block."""
    for name in (".ray/auth_token", ".config/mindfu/secrets.sh"):
        (home / name).parent.mkdir(parents=True)
        (home / name).touch()
    with pytest.MonkeyPatch.context() as patch, moto.mock_aws():
        patch.setenv("HOME", str(home))
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.chdir(ROOT)
        iam = boto3.client("iam")
        iam.create_role(RoleName="mindfu", AssumeRolePolicyDocument=json.dumps(ASSUMED))
        policy = (ROOT / "cluster" / "aws_policy.json").read_text()
        iam.put_role_policy(RoleName="mindfu", PolicyName="mindfu", PolicyDocument=policy)
        iam.create_instance_profile(InstanceProfileName="mindfu")
        iam.add_role_to_instance_profile(InstanceProfileName="mindfu", RoleName="mindfu")
        yield bootstrap()


def bootstrap() -> dict[str, Any]:
    """What `ray up` makes of our file."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    image = boto3.client("ec2").describe_images()["Images"][0]["ImageId"]  # moto looks nothing up in SSM
    for told in config["available_node_types"].values():
        told["node_config"]["ImageId"] = image
    prepared: dict[str, Any] = _bootstrap_config(config, no_config_cache=True)
    return prepared
