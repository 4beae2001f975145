"""Gateways on several nodes: each answers, and all know the same."""

import httpx
import pytest

from tests.cluster.conftest import KEY, MODEL, ROOT, Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]

QUESTION = {"model": MODEL, "messages": [{"role": "user", "content": "When does the backup run?"}], "max_tokens": 8}


@pytest.fixture(scope="module")
def everywhere(cluster: Cluster) -> Cluster:
    """Served anew, with `proxy_location: EveryNode` and a gateway on each of three nodes."""
    cluster.stop()
    cluster.everywhere = True
    cluster.write(replicas=(2, 2))
    cluster.serve()
    cluster.until(lambda: len(set(cluster.serving("Gateway").values())) == 3, 240)
    return cluster


def test_every_nodes_gateway_answers_from_the_one_store(everywhere: Cluster):
    """The Qdrant engine stays on the head, PostgreSQL is elsewhere: what one gateway was told, all know."""
    nodes = set(everywhere.serving("Gateway").values())
    assert "head" in nodes
    assert set(everywhere.serving("VectorStore").values()) == {"head"}
    with everywhere.http() as http, (ROOT / "docs" / "example-handbook.md").open("rb") as handbook:
        form = {"collection": "watched"}
        http.post("/v1/documents/upload", files={"file": handbook}, data=form).raise_for_status()
    said = ""
    for node in sorted(nodes):
        url = f"http://{everywhere.machines[node].address}:11434"
        with httpx.Client(base_url=url, timeout=120, headers={"authorization": f"Bearer {KEY}"}) as http:
            body = {**QUESTION, "rag": {"collections": ["watched"]}}
            answer = http.post("/v1/chat/completions", json=body).raise_for_status()
            assert len(answer.json()["sources"]) == 1, node
            if said:
                http.get(f"/v1/conversations/{said}").raise_for_status()  # of the gateway before
            said = answer.headers["x-conversation-id"]
        assert httpx.post(f"{url}/v1/chat/completions", json=QUESTION, timeout=30).status_code == 401, node


def test_a_node_that_is_gone_takes_its_own_door_only(everywhere: Cluster):
    """Who asks another node is answered."""
    gone = next(node for node in everywhere.serving("Gateway").values() if node != "head")
    left = [node for node in set(everywhere.serving("Gateway").values()) if node != gone]
    everywhere.machines[gone].run("pkill -9 -f 'rayle[t]|ray:[:]'")
    for node in left:
        url = f"http://{everywhere.machines[node].address}:11434/v1/chat/completions"
        answer = httpx.post(
            url, json={**QUESTION, "rag": False}, headers={"authorization": f"Bearer {KEY}"}, timeout=120
        )
        assert answer.status_code == 200, answer.text
