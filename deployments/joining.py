"""Find the Ray of a home, and join it: `mindfu serve` notes where it runs, other commands of this machine go there."""

import asyncio
import contextlib
import functools
import logging
import os
import secrets as random
import socket
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.settings import params_file

NAMESPACE = "serve"
TRACING = {  # what makes Serve trace, see deployments/tracing.py
    "OTEL_SERVICE_NAME": "mindfu",
    "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "deployments.tracing:exporters",
    "RAY_SERVE_TRACING_SAMPLING_RATIO": "1",
}


def environment(home: Path) -> None:
    """What Ray and Serve read before they are imported. Values that are set already stay."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)  # conversations and keys are nobody else's to read
    token = home / "keys" / "ray_token"
    if not token.exists():
        token.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        token.touch(0o600)
        token.write_text(random.token_hex(32))
    for name, value in {
        **(TRACING if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") else {}),
        "MINDFU_HOME": str(home),
        "MINDFU_PARAMS": str(params_file()),
        "RAY_ADDRESS": "local",  # a Ray of our own, even where another one runs
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # it would keep a thousand log lines to itself
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",  # what hangs is not waited for
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1),  # else 4 MiB: the guard limits, with a clear error
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",  # it would open the gateway's own port on all interfaces
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "GRPC_ENABLE_FORK_SUPPORT": "0",  # uvloop forks; gRPC then starts threads in the child, and it crashes at times
    }.items():
        os.environ.setdefault(name, value)


def any_agent_port() -> None:
    """Have the Ray that is started next in this process listen on a free port for jobs, as training runs are.

    Else it wants 52365, which another Ray of this machine may have, and goes on without. `ray.init` has no argument for
    it, as `ray start` has.
    """
    from ray._private.parameter import RayParams

    RayParams.__init__ = functools.partialmethod(RayParams.__init__, dashboard_agent_listen_port=0)


@contextlib.contextmanager
def noted(home: Path, address: str) -> Iterator[None]:
    """While the block runs, the home says where its Ray is. address: host:port."""
    note = home / "ray_address"
    note.write_text(address)
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def address_of(home: Path) -> str | None:
    """Where the home's Ray is; None where none answers."""
    try:
        address = (home / "ray_address").read_text().strip()
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), 2.0):
            return address
    except (OSError, ValueError):
        return None


@contextlib.contextmanager
def joined(home: Path, address: str) -> Iterator[None]:
    """Be a driver of that Ray while the block runs."""
    environment(home)
    os.environ["RAY_ADDRESS"] = address
    import ray

    ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level="error")
    hush()
    try:
        yield
    finally:
        ray.shutdown()


def hush() -> None:
    """Keep Ray's remarks on its own inner life off this terminal. After Ray was started, and after each first import
    of a library of its, which sets its own level.
    """
    from ray import serve  # which sets the level

    logging.getLogger(serve.__name__).setLevel(logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # Nothing else says yet on which machine a stage of Ray Data runs.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)


class Part:
    """A deployment of the running graph, called from outside of it and of any event loop, from several threads at once.

    Its handle lives in an event loop in a thread of its own, as handles must where Serve is set up for throughput.
    Raises LookupError where the graph does not run.
    """

    def __init__(self, name: str) -> None:
        from ray import serve

        applications = serve.status().applications.items()
        application = next((name_ for name_, status in applications if name in status.deployments), None)
        if application is None:
            raise LookupError(name)
        self._name, self._handle = name.lower(), serve.get_deployment_handle(name, application)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name=name, daemon=True).start()

    def ask(self, method: str, *arguments: object) -> Any:
        """The answer of a method. Raises MindFuError as it was raised there."""
        from deployments.calls import call

        asked = call(self._name, self._handle, method, *arguments)
        return asyncio.run_coroutine_threadsafe(asked, self._loop).result()
