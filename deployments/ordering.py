"""What a run that is asked for over HTTP, or by itself, is to do: params.yaml, and for other models than its own what
serves them.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from app import params
from app.errors import Conflict, Misconfigured
from app.llama.source import locate
from app.llama.styles import AUTO
from app.runs import Parameters, StageName
from app.settings import DEMO_MODEL, AnyLLMSettings, LLMSettings, params_file
from app.vllm import source as folders

NEEDED = ("peft", "trl", "mlflow")  # of the extra `train`


def require_training() -> None:
    """Raises Conflict where training is not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        message = f"Training is not installed here ({', '.join(missing)} missing): pip install 'mindfu[train]'."
        raise Conflict(message)


def parameters_for(model: str, llm: AnyLLMSettings, home: Path) -> Parameters:
    """The stages' parameters, to tune a served model. Raises Misconfigured where params.yaml cannot be read.

    params.yaml says which model it is for, `publish.model`. Another one's base is the file or folder that serves it.
    The chat template is the one that it is served by; Misconfigured too where params.yaml names another for it.
    """
    told = _styled(params.read(params_file()), model, llm.of(model) if isinstance(llm, LLMSettings) else llm)
    if told.get("publish", {}).get("model") == model and "base" in told.get("tune", {}):
        return told
    if not isinstance(llm, LLMSettings):  # what it is evaluated with is a GGUF, which params.yaml names
        return params.changed(
            told, {"tune": {"base": str(folders.locate(llm.model, home))}, "publish": {"model": model}}
        )
    source = llm.of(model).model
    file = source if source == DEMO_MODEL else str(locate(source, home))
    served: Mapping[StageName, Mapping[str, object]] = {
        "tune": {"base": file},
        "evaluate": {"gguf": None if file == DEMO_MODEL else file},
        "publish": {"model": model},
    }
    return params.changed(told, served)


def _styled(told: Parameters, model: str, served: AnyLLMSettings) -> Parameters:
    own, style = told.get("tune", {}).get("chat_template", AUTO), served.chat_template
    if own == style:
        return told
    if "chat_template" in told.get("tune", {}) and told.get("publish", {}).get("model") == model:
        problem = f"is {own} in params.yaml, and the model is served by {style}"
        raise Misconfigured(
            "tune.chat_template", problem, "Give llm.chat_template the same value, or leave it out here"
        )
    return params.changed(told, {"tune": {"chat_template": style}})
