"""What stands between a client and vLLM costs: our graph beside Ray Serve's own LLM ingress and vLLM's own server.

    .venv-vllm/bin/python -m benchmarks.serve_llm [--requests 160] [--clients 8]

In the environment of `make vllm-test`, as the build of vLLM for CPUs is there. One model that says sixteen digits, an
engine for each way: `vllm serve` (`direct`), the stock `ray.serve.llm` application, and MindFu with a key, every turn
recorded, RAG off. Each is asked in turns with `direct`. Columns as in benchmarks/proxy.py; CPU is of all processes but
vLLM's engine cores.
"""

import argparse
import asyncio
import os
import platform
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.peers import running
from benchmarks.proxy import HEAD, MODEL, PORT, ROOT, Way, mindfu, row
from tests.gguf_factory import chain_model, vocabulary
from train import base

CORE = "VLLM::"  # in the titles of the processes of its engine
ENGINE = {"max_model_len": 512, "max_num_seqs": 16, "dtype": "float32", "enforce_eager": True}
CACHE_BYTES = 256 * 2**20
STOCK = """
import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

served = LLMConfig(
    model_loading_config={{"model_id": "{model}", "model_source": "{folder}"}},
    engine_kwargs={engine}, deployment_config={{"num_replicas": 1}},
    placement_group_config={{"bundles": [{{"CPU": 1}}]}},
)
ray.init(num_cpus=8)  # as Ray counts them
serve.start(http_options={{"host": "127.0.0.1", "port": {port}}})
serve.run(build_openai_app({{"llm_configs": [served]}}), blocking=True)
"""


@asynccontextmanager
async def vllm(folder: Path) -> AsyncIterator[Way]:
    """The server that vLLM brings."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in ENGINE.items() if value is not True]
    flags += [f"--model={folder}", f"--served-model-name={MODEL}", f"--port={PORT}", "--host=127.0.0.1"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager", *flags]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    async with running("vllm serve", command, PORT, environment) as server:
        yield Way("direct: vllm serve", server.port, server.pid, engine=CORE)


@asynccontextmanager
async def stock(folder: Path) -> AsyncIterator[Way]:
    """Ray Serve's own application, as its documentation starts it."""
    script = STOCK.format(model=MODEL, folder=folder, engine=ENGINE, port=PORT + 4)
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local"}
    async with running("ray.serve.llm", [sys.executable, "-c", script], PORT + 4, environment, "/v1/models") as server:
        yield Way("ray.serve.llm", server.port, server.pid, engine=CORE)


def configuration(folder: Path) -> dict[str, object]:
    """Ours on vLLM."""
    llm = {"engine": "vllm", "model": str(folder), "name": MODEL, "window": 512, "slots": 16, "dtype": "float32",
           "enforce_eager": True, "kv_cache_bytes": CACHE_BYTES, "gpu_layers": None}  # fmt: skip
    deployments = {"LlamaCpp": None, "Vllm": {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.5}}}
    application = {"args": {"llm": llm}, "deployments": deployments}
    return {"extends": str(ROOT / "serve_config.yaml"), "applications": {"mindfu": application}}


async def main() -> None:
    """Measure each way, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        digits = chain_model(home / "digits.gguf", [vocabulary()[0].index(digit) for digit in "0123456789"])
        model = base.find(str(digits), home).folder
        async with vllm(model) as direct:
            print(HEAD, flush=True)
            print(await row(direct, direct, options.clients, options.requests), flush=True)
            async with stock(model) as way:
                print(await row(way, direct, options.clients, options.requests), flush=True)
            async with mindfu("", home, "MindFu on vLLM", config=configuration(model)) as way:
                ours = replace(way, engine=CORE)
                print(await row(ours, direct, options.clients, options.requests), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
