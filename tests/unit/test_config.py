"""`mindfu check`: what Serve would ignore silently is named."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from app.keys import pepper
from app.settings import Secrets
from deployments.config import problems

GOOD = """
http_options: {host: 127.0.0.1, port: 11434}
applications:
  - name: mindfu
    import_path: deployments.graph:build
"""
GPUS = "    deployments: [{name: LlamaCpp, ray_actor_options: {num_gpus: 2}}]\n"


def lint(tmp_path: Path, text: str, secrets: Secrets | None = None) -> list[str]:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    return problems(file, secrets or Secrets(), tmp_path)


def test_the_shipped_configuration_is_clean(tmp_path: Path):
    """The file that `make serve` uses."""
    assert problems(Path(__file__).parents[2] / "serve_config.yaml", Secrets(), tmp_path) == []


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("    args: {rag: {topk: 3}}", "did you mean 'top_k'"),
        ("    args: {llm: {window: 5}}", "args.llm.window"),
        ("    args: {llm: {models: {big: {model: a.gguf, windw: 512}}}}", "did you mean 'window'"),
        ("    args: {llm: {models: {mindfu-demo: {model: a.gguf}}}}", "main model's name"),
        ("    args: {llm: {models: {big: {model: a.gguf, slots: 600}}}}", "args.llm.models.big.slots"),
        ("    deployments: [{name: Gatewy}]", "no part is called 'Gatewy'"),
        ("    deployments: [{name: Gateway, num_replica: 2}]", "did you mean 'num_replicas'"),
        ("    deployments: [{name: VectorStore, num_replicas: 2}]", "must be 1"),
        ("    deployments: [{name: Reranker}]", "only where args.rag.rerank names a model"),
        ("    args: {documents: {chunking: fixed}}", "args.documents.chunking"),
        ("    args: {llm: {gpu_layers: -1}}", "it would see no GPU"),
        ("    args: {llm: {models: {big: {model: a.gguf, gpu_layers: 9}}}}", "'big' is 9"),
        ("    deployments: [{name: LlamaCpp, ray_actor_options: {num_gpus: 1}}]", "gpu_layers is 0"),
        (GPUS + "    args: {llm: {gpu_layers: -1, gpus: [2]}}", "names 2, num_gpus is 2"),
        ("    args: {llm: {gpus: [0]}}", "nothing would run there"),
        ("    args: {llm: {gpu_layers: -1, gpus: [0, 0]}}", "each once"),
        ("    args: {llm: {gpu_layers: -1, gpus: [0, 1], gpu_split: [1]}}", "gpu_split has 1 shares, gpus names 2"),
        ("    args: {tools: {enabled: true, functions: ['nowhere:f']}}", "args.tools.functions: 'nowhere:f' cannot be"),
        (
            "    args: {tools: {enabled: true, roots: [/etc]}}",
            "args.tools.roots: '/etc' lies in '/etc', which is protected",
        ),
        ("    args: {tools: {enabled: true, roots: [/]}}", "the whole file system"),
        ("    args: {tools: {enabled: true, roots: [work]}}", "no folder with an absolute path"),
        ("    args: {tools: {enabled: true, without: [rm]}}", "there is no tool 'rm'"),
        ("    args: {tools: {mcp: {a: {command: [x], urls: y}}}}", "did you mean 'url'"),
        ("    args: {tools: {mcp: {a__b/c: {command: [x]}}}}", "args.tools.mcp"),
        ("    deployments: [{name: Tools}]", "only where args.tools.enabled is true"),
        ("    args: {tools: {enabled: true}}\n    deployments: [{name: Tools, num_replicas: 2}]", "must be 1"),
        ("1: HeadOnly", "1: unknown key"),
        ("proxy_locaton: HeadOnly", "did you mean 'proxy_location'"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, more: str, named: str):
    """Each mistake alone gives one line that says where and what."""
    found = lint(tmp_path, GOOD + more)
    assert len(found) == 1
    assert named in found[0]


def test_the_network_needs_a_key(tmp_path: Path):
    """Listening beyond loopback without a key is refused; with a key, and on loopback, it is fine."""
    exposed = GOOD.replace("127.0.0.1", "0.0.0.0")
    assert "MINDFU_API_KEY" in lint(tmp_path, exposed)[0]
    assert lint(tmp_path, exposed, Secrets(api_key=SecretStr("k"))) == []
    assert lint(tmp_path, GOOD.replace("127.0.0.1", "localhost")) == []


def test_a_home_that_has_keys_may_listen_on_the_network(tmp_path: Path):
    """The pepper tells: a file of the home folder, or the environment's."""
    exposed = GOOD.replace("127.0.0.1", "0.0.0.0")
    assert lint(tmp_path, exposed, Secrets(key_pepper=SecretStr("p"))) == []
    pepper(tmp_path, None, make=True)
    assert lint(tmp_path, exposed) == []


def test_a_file_that_is_no_yaml_is_told(tmp_path: Path):
    """A broken or absent file is one clear line."""
    assert "cannot be read" in lint(tmp_path, "a: [")[0]
    assert "cannot be read" in problems(tmp_path / "absent.yaml", Secrets(), tmp_path)[0]
