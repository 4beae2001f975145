"""What of a server on 127.0.0.1 can be reached from elsewhere over HTTP: nothing."""

from urllib.parse import urlsplit

import psutil

from tests.acceptance.conftest import Server


def listening(process: psutil.Process) -> set[tuple[str, int]]:
    """Address and port of everything that a process listens on."""
    return {tuple(one.laddr) for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN}


def test_haproxy_and_the_gateways_behind_it_listen_on_loopback_alone(server: Server):
    """HAProxy on the one port; its pages and its command socket are files. A gateway on Serve's ports from 30000 on."""
    port = urlsplit(server.url).port
    children = psutil.Process(server.process.pid).children(recursive=True)
    (haproxy,) = [child for child in children if child.name() == "haproxy"]
    assert listening(haproxy) == {("127.0.0.1", port)}
    direct = {address for address in listening(server.replica("Gateway")) if 30000 <= address[1] < 31000}
    assert {host for host, _ in direct} == {"127.0.0.1"}
