"""Lint serve_config.yaml before anything starts: Ray Serve's own schema ignores a misspelt key, we name it."""

import difflib
import math
import typing
from collections.abc import Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeDeploySchema

from app.errors import Misconfigured
from app.keys import pepper
from app.settings import ENGINES, IMPORT_PATH, LLMSettings, Secrets, Settings, ToolSettings
from app.tools.catalogue import own
from app.tools.sandbox import shared
from app.vllm.settings import VllmSettings
from deployments.profiles import resolved

DEPLOYMENTS = (
    "Gateway",
    "LlamaCpp",
    "Vllm",
    "Embedder",
    "Retriever",
    "Reranker",
    "Librarian",
    "VectorStore",
    "Tools",
    "Trainer",
)
SINGLE = {"VectorStore": "it owns a folder", "Tools": "it owns the workspaces and the MCP servers"}


def problems(path: Path, secrets: Secrets, home: Path) -> list[str]:
    """Everything that is wrong with a configuration file, one line each; empty when it can be served.

    home: the folder that may hold keys.
    """
    try:
        config = resolved(path)
    except Misconfigured as exc:
        return [str(exc)]
    if "cluster_name" in config:
        from deployments import clusters  # and Ray's autoscaler, which no gateway needs

        return clusters.problems(config)
    found = [*_unknown_keys(ServeDeploySchema, config, "")]
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as exc:
        return found + [f"{_dotted(problem['loc'])}: {problem['msg']}" for problem in exc.errors()]
    try:
        require_key_beyond_loopback(config.get("http_options", {}).get("host", "0.0.0.0"), secrets, home)  # noqa: S104
    except Misconfigured as exc:
        found.append(str(exc))
    for index, application in enumerate(config["applications"]):
        if application.get("import_path") == IMPORT_PATH:
            found += _application_problems(application, home, f"applications[{index}]")
    return found


def require_key_beyond_loopback(host: str, secrets: Secrets, home: Path) -> None:
    """Refuse to serve the network where nobody has a key. Raises Misconfigured.

    A pepper says that `mindfu keys` made one; should none of them work any more, nobody is let in: see `Keyring`.
    """
    if beyond_loopback(host) and secrets.api_key is None and pepper(home, secrets.key_pepper) is None:
        problem = f"listening on {host} needs an API key, and there is none"
        remedy = "Set MINDFU_API_KEY, make a key with `mindfu keys create`, or listen on 127.0.0.1."
        raise Misconfigured("http_options.host", problem, remedy)


def beyond_loopback(host: str) -> bool:
    """Whether others than this machine can reach an address that is listened on."""
    try:
        return host != "localhost" and not ip_address(host).is_loopback
    except ValueError:
        return True


def _application_problems(application: Mapping[str, Any], home: Path, where: str) -> Iterator[str]:
    try:
        Settings.model_validate(application.get("args") or {})
    except ValidationError as exc:
        for problem in exc.errors():
            yield f"{where}.args.{_dotted(_written(problem['loc']))}: {_explained(problem)}"
    else:
        yield from _engine_problems(application, where)
        yield from _tool_problems(Settings.model_validate(application.get("args") or {}).tools, home, where)
    for deployment in application.get("deployments") or []:
        name = deployment.get("name")
        if name not in DEPLOYMENTS:
            yield f"{where}.deployments: no part is called '{name}'; there are {', '.join(DEPLOYMENTS)}"
        if name == "Reranker" and not ((application.get("args") or {}).get("rag") or {}).get("rerank"):
            yield f"{where}.deployments.Reranker: it is there only where args.rag.rerank names a model"
        if name == "Tools" and not ((application.get("args") or {}).get("tools") or {}).get("enabled"):
            yield f"{where}.deployments.Tools: it is there only where args.tools.enabled is true"
        if name in SINGLE and deployment.get("num_replicas", 1) != 1:
            yield f"{where}.deployments.{name}.num_replicas: must be 1, {SINGLE[name]}"


def _engine_problems(application: Mapping[str, Any], where: str) -> Iterator[str]:
    """A deployment of the engine that is not chosen, and GPUs that the other one is not given, or does not use."""
    llm = Settings.model_validate(application.get("args") or {}).llm
    deployments = {one.get("name"): one for one in application.get("deployments") or []}
    chosen, other = ("Vllm", "LlamaCpp") if llm.engine == "vllm" else ("LlamaCpp", "Vllm")
    if other in deployments:
        yield f"{where}.deployments.{other}: args.llm.engine is {llm.engine}, whose deployment is called {chosen}"
    given = (deployments.get(chosen, {}).get("ray_actor_options") or {}).get("num_gpus", 0)
    if isinstance(llm, VllmSettings):
        if math.ceil(given) != llm.tensor_parallel_size and (given or llm.tensor_parallel_size > 1):
            yield (
                f"{where}.deployments.Vllm: num_gpus is {given}, tensor_parallel_size is {llm.tensor_parallel_size}: "
                "they must be the same, or num_gpus 0 where vLLM is built for CPUs"
            )
        return
    yield from _layer_problems(llm, given, where)


def _layer_problems(llm: LLMSettings, given: float, where: str) -> Iterator[str]:
    """Layers on GPUs that the replica is not given, and GPUs that no layer goes to. Ray hides what it does not give."""
    models = [llm.of(name) for name in (llm.name, *llm.models)]
    if not given and (wanting := next((model for model in models if model.gpu_layers), None)):
        yield (
            f"{where}.args.llm: gpu_layers of '{wanting.name}' is {wanting.gpu_layers}, but the LlamaCpp deployment "
            "has no ray_actor_options.num_gpus, so it would see no GPU"
        )
    elif given and not any(model.gpu_layers for model in models):
        yield f"{where}.deployments.LlamaCpp: num_gpus is {given}, but gpu_layers is 0: set it to -1 for all layers"
    for model in models:
        if given and model.gpus and max(model.gpus) >= math.ceil(given):
            yield f"{where}.args.llm: gpus of '{model.name}' names {max(model.gpus)}, num_gpus is {given}: from 0 on"


def _tool_problems(settings: ToolSettings, home: Path, where: str) -> Iterator[str]:
    """Functions that cannot be tools, and folders that cannot be worked in."""
    if settings.enabled:
        try:
            own(settings)
            shared(settings, home)
        except Misconfigured as exc:
            yield f"{where}.args.{exc}"


def _explained(problem: Any) -> str:
    if problem["type"] != "extra_forbidden":
        return f"{problem['msg']} (got {problem['input']!r})"
    fields = _model_at(Settings, problem["loc"][:-1]).model_fields
    return "unknown setting" + _suggestion(str(problem["loc"][-1]), fields)


def _written(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """A place in the settings as people write it: without the engine, which pydantic puts behind `llm`."""
    return (location[0], *location[2:]) if location[:1] == ("llm",) else location


def _model_at(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel]:
    steps = iter(path)
    for step in steps:
        if step == "llm":
            model = ENGINES[str(next(steps))]
            continue
        annotation = model.model_fields[str(step)].annotation
        if typing.get_origin(annotation) is dict:  # of models by name
            annotation = typing.get_args(annotation)[1]
            next(steps)
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return model


def _unknown_keys(model: type[BaseModel], data: Mapping[str, Any], where: str) -> Iterator[str]:
    """Keys that the schema would ignore, at every level that is a mapping or a list of mappings."""
    for key, value in data.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in model.model_fields:
            yield f"{path}: unknown key" + _suggestion(str(key), model.model_fields)
            continue
        for nested in _models_in(model.model_fields[key].annotation):
            for index, item in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(item, dict):
                    yield from _unknown_keys(nested, item, f"{path}[{index}]" if isinstance(value, list) else path)
            break


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models_in(argument)


def _suggestion(key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known are {', '.join(sorted(known))}"


def _dotted(location: tuple[str | int, ...]) -> str:
    return ".".join(str(step) for step in location)
