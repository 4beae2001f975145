"""`mindfu serve`, `mindfu check` and `mindfu resolve`.

`serve` is `serve run CONFIG` with a Ray of its own around it: it checks the file first, shows what starts, says when it
answers, and takes everything down on Ctrl-C.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from app.errors import Misconfigured
from app.llama.source import locate
from app.ports import is_free
from app.settings import IMPORT_PATH, Secrets, Settings, home
from app.vllm import source as folders
from app.vllm.settings import VllmSettings
from deployments import front, preflight
from deployments.cli_options import Json
from deployments.joining import NAMESPACE, any_agent_port, environment, hush, noted
from deployments.profiles import placed, resolved

START_TIMEOUT_S = 900.0  # a large model may have to be downloaded first
STOP_TIMEOUT_S = 60.0
DEFAULT = Path("serve_config.yaml")

Config = Annotated[Path, typer.Argument(help="The configuration.")]
Configs = Annotated[
    list[Path] | None, typer.Argument(help="The configurations; serve_config.yaml where none is named.")
]


def check(configs: Configs = None, *, as_json: Json = False) -> int:
    """Say what is wrong with configurations.

    Exit status 0: nothing; 2: something. With --json there is an object on a line for each.
    """
    return max([_checked(config, as_json=as_json) for config in configs or [DEFAULT]])


def resolve(config: Config = DEFAULT, *, as_json: Json = False) -> int:
    """Print the whole of a profile, for `serve run` and `serve deploy`, which know no `extends`.

    With MINDFU_QDRANT_URL it has no VectorStore, as the graph has none then.
    """
    whole = placed(resolved(config), Secrets.from_env())
    print(json.dumps(whole) if as_json else yaml.safe_dump(whole, sort_keys=False).rstrip("\n"))
    return 0


def _checked(config: Path, *, as_json: bool = False) -> int:
    from deployments.config import problems  # Ray takes a second to import, and reads its environment then

    found = problems(config, Secrets.from_env(), home())
    if as_json:
        print(json.dumps({"config": str(config), "problems": found}))
        return 2 if found else 0
    for problem in found:
        print(f"  ✗ {problem}", file=sys.stderr)
    print(f"{config}: {f'{len(found)} problem(s)' if found else 'ok'}")
    return 2 if found else 0


def serve(config: Config = DEFAULT, *, as_json: Json = False) -> int:
    """Start everything and answer until Ctrl-C, or POST /shutdown.

    Exit status 0: stopped on request; 1: it failed to start or died; 2: bad configuration. With --json standard output
    is an object on a line when it answers, with its url, and when it has stopped.
    """
    out = sys.stdout

    def tell(state: str, text: str, **facts: str) -> None:
        print(json.dumps({"state": state, **facts}) if as_json else text, file=out, flush=True)

    with contextlib.redirect_stdout(sys.stderr if as_json else out):
        return _served(config, tell)


def _served(config: Path, tell: Callable[..., None]) -> int:
    environment(home())  # first: Ray reads it when it is imported
    local = os.environ["RAY_ADDRESS"] == "local"
    with front.haproxy(home()) if local else contextlib.nullcontext():
        return _served_behind(config, tell)


def _served_behind(config: Path, tell: Callable[..., None]) -> int:
    if _checked(config):
        return 2
    parsed = placed(resolved(config), Secrets.from_env())
    http = parsed.get("http_options", {})
    host, port = http.get("host", "127.0.0.1"), http.get("port", 8000)
    if not is_free(host, port):
        print(f"Port {port} on {host} is taken. Stop what uses it, or change http_options.port.", file=sys.stderr)
        return 2
    try:
        _find_parts(parsed)
    except Misconfigured as exc:
        print(exc, file=sys.stderr)
        return 2
    with contextlib.suppress(KeyboardInterrupt), _ray() as address, _serve_run(_whole(parsed), address) as process:
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104 - a comparison
        if not _wait_until_running(process):
            return 1
        text = f"MindFu answers on {url}/v1 — `curl {url}/health` shows its parts, Ctrl-C stops it."
        tell("answers", text, url=url)
        if not _wait_until_shut_down(process):
            text = "`serve run` ended by itself; its log lies under /tmp/ray/session_latest/logs/serve."
            print(text, file=sys.stderr)
            return 1
    tell("stopped", "MindFu stopped.")
    return 0


def _whole(config: dict[str, Any]) -> Path:
    """A file in the home with the whole of a configuration: Serve's own parser knows no profiles."""
    file = home() / "served.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return file


def _find_parts(config: dict[str, Any]) -> None:
    """See that there is room, and that the models are here, or download them with the progress on this terminal.

    Raises Misconfigured.
    Not where a cluster runs already: its other machines have files of their own.
    """
    if os.environ["RAY_ADDRESS"] != "local":
        return
    preflight.require(config, preflight.here())
    for application in config["applications"]:
        if application["import_path"] == IMPORT_PATH:
            llm = Settings.model_validate(application.get("args") or {}).llm
            if isinstance(llm, VllmSettings):
                folders.locate(llm.model, home())
                continue
            for source in (llm.model, *(further.model for further in llm.models.values())):
                locate(source, home())


@contextlib.contextmanager
def _ray() -> Iterator[str]:
    """A local Ray for as long as the block runs; the cluster of RAY_ADDRESS where that is set. Yields its address."""
    import ray

    print("Starting Ray …", flush=True)
    local = os.environ["RAY_ADDRESS"] == "local"
    own: dict[str, Any] = {"num_cpus": preflight.OWN_CPUS, "object_store_memory": 512 * 2**20}
    if local:
        any_agent_port()
    context = ray.init(
        os.environ["RAY_ADDRESS"],
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level="warning",
        **own if local else {},
    )
    hush()
    print(f"  dashboard http://{context.dashboard_url}", flush=True)
    address = context.address_info["gcs_address"]
    try:
        with noted(home(), address):
            yield address
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _serve_run(config: Path, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """`serve run CONFIG` as a child; interrupted at the end, so that it takes its replicas down in order."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and so would the child
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # not under nohup
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    log = home() / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own arguments
            [sys.executable, "-m", "ray.serve.scripts", "run", str(config), f"--address={address}"],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on
            env={**os.environ, "RAY_ADDRESS": address},
            # Ray has all replicas look for code where their driver began, even before the release that they are to run.
            cwd=None if os.environ["RAY_ADDRESS"] == "local" else home(),
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                try:
                    _let_answers_end()
                    process.send_signal(signal.SIGINT)
                    process.wait(STOP_TIMEOUT_S)
                except (TimeoutError, subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C: at once
                    process.kill()
                    process.wait()


def _let_answers_end() -> None:
    """Take the applications away: nothing new is answered, and what runs may end first (`GRACE_S` of the graph).

    Without that `serve run` ends its proxy at once, and with it every stream. Raises TimeoutError after 60 s.
    """
    from ray import serve as ray_serve

    for name in ray_serve.status().applications:
        ray_serve.delete(name)


def _wait_until_running(process: subprocess.Popen[bytes]) -> bool:
    """Print each part as it becomes healthy. False, with the reason printed, when the graph cannot start."""
    from ray import serve as ray_serve

    seen: dict[str, str] = {}
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            print((home() / "serve.log").read_text(), file=sys.stderr)
            return False
        for application in ray_serve.status().applications.values():
            for name, deployment in application.deployments.items():
                if seen.get(name) != deployment.status:
                    seen[name] = deployment.status
                    print(f"  {name:<12} {deployment.status.lower()} {deployment.message[-2000:]}".rstrip(), flush=True)
            if application.status == "RUNNING":
                return True
            if application.status in {"DEPLOY_FAILED", "UNHEALTHY"}:
                print(application.message, file=sys.stderr)
                return False
        time.sleep(0.25)
    print(f"Not running after {START_TIMEOUT_S:.0f} s.", file=sys.stderr)
    return False


def _wait_until_shut_down(process: subprocess.Popen[bytes]) -> bool:
    """Whether it was by POST /shutdown, which takes the applications away; False: `serve run` ended."""
    from ray.serve.context import _get_global_client

    while process.poll() is None:
        if not _get_global_client().list_serve_statuses():  # serve.status() is 60 ms of pickling at either end
            return True
        time.sleep(1.0)
    return False
