"""HAProxy as Serve starts it shows nothing but the HTTP port, whatever file Serve writes for it."""

import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from deployments import front


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without what the surroundings say of HAProxy; what is set in a test ends with it."""
    for name in [name for name in os.environ if "HAPROXY" in name or "HA_PROXY" in name or "FALLBACK" in name]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return monkeypatch


@pytest.mark.parametrize(("host", "bound"), [("127.0.0.1", "127.0.0.1:22999"), ("0.0.0.0", "*:22999")])
def test_only_the_http_port_is_listened_on(environment, tmp_path: Path, host: str, bound: str):
    """In the file that Ray's own template makes, which HAProxy then accepts: pages and socket are this user's alone."""
    from ray.serve._private.haproxy import HAProxyApi, HAProxyConfig
    from ray.serve.config import HTTPOptions

    file = tmp_path / "haproxy.cfg"
    config = HAProxyConfig(
        http_options=HTTPOptions(host=host, port=22999),
        socket_path=str(tmp_path / "admin.sock"),
        server_state_base=str(tmp_path),
        server_state_file=str(tmp_path / "state"),
        metrics_socket_path=str(tmp_path / "metrics.sock"),
    )
    HAProxyApi(cfg=config, config_file_path=str(file))._generate_config_file_internal()
    program = front.write_program(tmp_path)
    subprocess.run([str(program), "-db", "-f", str(file), "-c"], check=True, capture_output=True)
    lines = [line.split() for line in file.read_text().splitlines()]
    pages = [f"unix@{tmp_path}/{port}.page" for port in (9101, 8404)]
    assert [line[1] for line in lines if line[:1] == ["bind"]] == [pages[0], bound, pages[1]]
    assert all(line[2:] == ["mode", "600"] for line in lines if line[:1] == ["bind"] and line[1] in pages)
    assert [line[4] for line in lines if line[:2] == ["stats", "socket"]] == ["600"]
    assert not [line for line in lines if line[:1] == ["log"] and "local0" in line]  # nothing to UDP 514


def test_the_program_is_its_users_alone(environment, tmp_path: Path):
    """Nobody else may change what is started."""
    assert stat.S_IMODE(front.write_program(tmp_path).stat().st_mode) == 0o700


def test_serves_own_proxy_stays_where_it_is_wanted(environment, tmp_path: Path):
    """What is set already stays."""
    environment.setitem(os.environ, "RAY_SERVE_ENABLE_HA_PROXY", "0")
    with front.haproxy(tmp_path):
        assert "RAY_SERVE_HAPROXY_BINARY_PATH" not in os.environ
    assert not list(tmp_path.iterdir())


def test_a_second_server_finds_a_port_for_its_fallback(environment, tmp_path: Path):
    """8500 may be the first one's."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environment.setattr(front, "FALLBACK", ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", port))
        with front.haproxy(tmp_path):
            assert int(os.environ["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"]) != port
            assert Path(os.environ["RAY_SERVE_HAPROXY_BINARY_PATH"]).parent == tmp_path


def test_its_files_lie_where_no_other_user_looks_and_go_with_it(environment, tmp_path: Path):
    """In a folder of this user alone, near enough that a socket fits there beside the id of a node."""
    with front.haproxy(tmp_path):
        places = [
            Path(value)
            for name, value in os.environ.items()
            if name.endswith(("_PATH", "_LOC", "_FILE")) and "HAPROXY" in name
        ]
        folders = {place.parent for place in places} - {tmp_path}
        assert len(folders) == 1
        (folder,) = folders
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert len(str(folder / ("x" * 56) / "metrics.sock")) < 90
    assert not folder.exists()


def test_a_clusters_node_that_wants_it_is_told_the_same_by_a_shell(environment, tmp_path: Path):
    """But for the time to end. What is set stays; a folder for its files that is not this user's alone is refused."""
    environment.setitem(os.environ, "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "90")
    told = "".join(f"{line}\n" for line in front.exports(tmp_path / "home", tmp_path / "front"))
    shell = ["env", "-i", "sh", "-c", f"{told} env"]
    given = dict(line.split("=", 1) for line in subprocess.check_output(shell, text=True).splitlines())
    assert "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S" not in given
    assert given["RAY_SERVE_HAPROXY_BINARY_PATH"] == str(tmp_path / "home" / "haproxy")
    assert stat.S_IMODE((tmp_path / "front").stat().st_mode) == 0o700
    (tmp_path / "front").chmod(0o755)
    with pytest.raises(PermissionError, match="not a folder of this user alone"):
        list(front.exports(tmp_path / "home", tmp_path / "front"))
    with front.haproxy(tmp_path):
        made = {name for name in os.environ if "HAPROXY" in name}
    assert made <= given.keys()
    assert "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S" not in given
