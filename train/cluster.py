"""The Ray that a stage runs on: the cluster of RAY_ADDRESS, else one of its own for as long as it runs."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OBJECT_STORE_BYTES = 256 * 2**20  # of a Ray of our own: rows and numbers, no weights


@contextmanager
def connected(home: Path) -> Iterator[str]:
    """Ray for the block; one that is connected already is used, and kept. Yields its address."""
    _environment(home)
    import ray  # reads the environment

    if ray.is_initialized():
        yield ray.get_runtime_context().gcs_address
        return
    address = os.environ.get("RAY_ADDRESS", "local")
    own = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False} if address == "local" else {}
    ray.init(address, logging_level="warning", log_to_driver=False, **own)
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def share(cpus: float, workers: int = 1) -> float:
    """CPUs that Ray is to reserve for each worker: those wanted, but none on one machine where too few are free.

    What serves has reserved all of a small machine. Reservations are bookkeeping there: training runs beside it, on
    the time that the system gives it, instead of waiting for ever. A cluster of several machines is waited for.
    """
    import ray

    free = float(ray.available_resources().get("CPU", 0.0))
    return cpus if len(ray.nodes()) > 1 or free >= cpus * workers else 0.0


def tasks() -> dict[str, float]:
    """What Ray Data is to reserve for a task: a CPU, or none, and then one task at a time."""
    return {"num_cpus": 1} if share(1) else {"num_cpus": 0, "concurrency": 1}


def _environment(home: Path) -> None:
    """What Ray reads when it starts: a token of our own (else it writes one into the user's home), nothing reported."""
    token = home / "keys" / "ray_token"
    if not token.exists():
        token.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
    for name, value in {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "900",  # while a node with a GPU boots
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }.items():
        os.environ.setdefault(name, value)
