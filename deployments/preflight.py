"""What a machine lacks for a configuration, said before a model is downloaded. Serve would wait for it without a word.

Only for a Ray of its own: on a cluster, nodes may come that nobody sees yet.
"""

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

from app.errors import Misconfigured
from app.llama.devices import REMEDY
from app.llama.styles import template_of
from app.llama.template import ChatTemplate
from app.llama.tokenizer import STYLE_SETTING
from app.settings import IMPORT_PATH, LLMSettings, Settings
from app.vllm.start import require_vllm

Config = Mapping[str, Any]
NAMES = {"num_cpus": "CPU", "num_gpus": "GPU"}
OWN_CPUS = max(2, os.cpu_count() or 2)  # the graph asks for 2 in shares; a machine with one runs it too, only slower
SHARES = 1e-6  # of a resource, which Ray counts in ten-thousandths


def require(config: Config, has: Mapping[str, float]) -> None:
    """Raise Misconfigured where the parts want more than there is, or an engine that is not installed for it.

    has: by Ray's names, as `wants` tells them.
    """
    require_room(config, has)
    for application in config["applications"]:
        if application["import_path"] == IMPORT_PATH:
            _require_engine(Settings.model_validate(application.get("args") or {}))


def require_room(config: Config, has: Mapping[str, float]) -> None:
    """The first half of it."""
    wanted = wants(config)
    lacks = [name for name in sorted(wanted, reverse=True) if wanted[name] > has.get(name, 0.0) + SHARES]
    if lacks:
        told = " and ".join(f"{wanted[name]:g} {_words(name)} (Ray has {has.get(name, 0.0):g})" for name in lacks)
        remedy = " ".join(map(_remedy, lacks))
        raise Misconfigured("deployments", f"they ask for {told}, more than this machine has", remedy)


def here() -> Mapping[str, float]:
    """What a Ray of its own has on this machine."""
    return {"CPU": OWN_CPUS, "GPU": gpus()}


def gpus() -> int:
    """How many Ray would find on this machine, CUDA_VISIBLE_DEVICES heeded."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    visible = manager.get_current_process_visible_accelerator_ids()
    return len(visible) if visible is not None else manager.get_current_node_num_accelerators()


def wants(config: Config) -> Mapping[str, float]:
    """What all parts that a configuration places ask for together, by Ray's names: CPU, GPU, and others."""
    total = Counter[str]()
    for application in config["applications"]:
        for part in application.get("deployments") or []:
            options = part.get("ray_actor_options") or {}
            asked = {NAMES[name]: options[name] for name in NAMES if options.get(name)} | (
                options.get("resources") or {}
            )
            for name, amount in asked.items():
                total[name] += amount * _replicas(part)
    return total


def _replicas(part: Config) -> int:
    """With which it starts."""
    scaling = part.get("autoscaling_config") or {}
    number = part.get("num_replicas", 1)
    least = scaling.get("initial_replicas") or scaling.get("min_replicas", 1)
    return int(least if scaling or number == "auto" else number)


def _require_engine(settings: Settings) -> None:
    llm = settings.llm
    for served in map(llm.of, (llm.name, *llm.models)) if isinstance(llm, LLMSettings) else [llm]:
        if (template := template_of(served.chat_template, STYLE_SETTING)) is not None:
            ChatTemplate(template, setting=STYLE_SETTING)
    if not isinstance(llm, LLMSettings):
        require_vllm()
    elif any(llm.of(name).gpu_layers for name in (llm.name, *llm.models)):
        from llama_cpp import llama_supports_gpu_offload  # half a second that others need not wait for

        if not llama_supports_gpu_offload():
            problem = f"is {llm.gpu_layers}, and this llama.cpp is built for CPUs"
            raise Misconfigured("llm.gpu_layers", problem, REMEDY)


def _words(name: str) -> str:
    return {"CPU": "CPUs", "GPU": "GPU(s)"}.get(name, f"of the resource '{name}'")


def _remedy(name: str) -> str:
    if name == "GPU":
        return (
            "Serve on a machine with GPUs whose driver works (`mindfu doctor`), or serve_config.yaml, which needs none."
        )
    if name == "CPU":
        return "Lower num_cpus under ray_actor_options, or use a machine with more."
    return "It is for a cluster: set RAY_ADDRESS=auto where one runs (docs/cluster.md)."
