"""Lint of a configuration for `ray up`: what Ray would refuse, and what would leave a cluster open or stuck.

Ray checks names and types (`prepare_config`, `validate_config`), but not the provider's part, and nothing of meaning.
"""

import copy
import io
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from deployments import hosts

PORT = 11434
TOKEN = ".ray/auth_token"  # noqa: S105 - a path
REQUIRED = {"aws": ("region",), "gcp": ("region", "availability_zone", "project_id"), "external": ("module", "pools")}


def problems(config: dict[str, Any]) -> list[str]:
    """Everything that is wrong, one line each. config: as it stands in the file."""
    found = [*_refused_by_ray(config)]
    if found:
        return found
    provider = config["provider"]
    found += [
        f"provider.{name}: is missing for {provider['type']}"
        for name in REQUIRED.get(provider["type"], ())
        if not provider.get(name)
    ]
    if provider["type"] not in REQUIRED:
        found.append(f"provider.type: '{provider['type']}' is not one that MindFu knows: {', '.join(REQUIRED)}")
    elif provider["type"] == "external" and not found:
        found += [f"provider: {problem}" for problem in hosts.problems(config)]
    return [*found, *_sizes(config), *_open_doors(config)]


def _refused_by_ray(config: dict[str, Any]) -> Iterator[str]:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            validate_config(prepare_config(copy.deepcopy(config)))
    except jsonschema.ValidationError as error:
        yield f"{error.json_path.removeprefix('$.')}: {error.message}"
    except KeyError as error:  # how it says that a field is missing
        yield f"{error.args[0]}: is missing"
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        yield str(error)


def _sizes(config: dict[str, Any]) -> Iterator[str]:
    for name, kind in (config.get("available_node_types") or {}).items():
        least, limit = kind.get("min_workers", 0), kind.get("max_workers", config.get("max_workers", 0))
        if least > limit:
            yield f"available_node_types.{name}: min_workers is {least}, max_workers {limit}"


def _open_doors(config: dict[str, Any]) -> Iterator[str]:
    """What would let strangers in, or tell others of it."""
    rules = (config["provider"].get("security_group") or {}).get("IpPermissions") or ()
    for rule in rules:
        if (rule.get("FromPort"), rule.get("ToPort")) != (PORT, PORT):
            ports = f"{rule.get('FromPort')} to {rule.get('ToPort')}"
            yield f"provider.security_group: opens ports {ports}; only {PORT} is for others"
    if not any(str(path).endswith(TOKEN) for path in config.get("file_mounts") or ()):
        yield f"file_mounts: no ~/{TOKEN}, without which Ray runs anybody's code"
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands = " ".join(config.get(name) or ())
        if "environment.sh" not in commands and "RAY_AUTH_MODE=token" not in commands:
            yield f"{name}: sets no RAY_AUTH_MODE=token (cluster/environment.sh does)"
        if name.startswith("head") and "--disable-usage-stats" not in commands:
            yield f"{name}: `ray start` without --disable-usage-stats, so Ray would report on the cluster"
        if name.startswith("head") and "--autoscaling-config" not in commands:
            yield f"{name}: `ray start` without --autoscaling-config, so no node would ever come"
        if "--dashboard-host=0.0.0.0" in commands:
            yield f"{name}: the dashboard listens on all interfaces; leave it on 127.0.0.1, and use `ray dashboard`"
