"""`mindfu models`: what a server may be switched to, what of it is there, and what is recommended."""

import json

from app.client import Model
from deployments.cli_client import TIMEOUT_S, Timeout, Url, connected, harmless
from deployments.cli_columns import columns
from deployments.cli_options import Json

HEAD = ("", "KEY", "", "SIZE", "CONTEXT", "RUNS ON", "DESCRIPTION")


def models(*, url: Url = None, timeout: Timeout = TIMEOUT_S, as_json: Json = False) -> None:
    """List the models of a server: * answers now, what is recommended, what has to be downloaded first."""
    with connected(url, timeout) as client:
        found = client.models()
    print(json.dumps([model.model_dump() for model in found]) if as_json else table(found))


def table(models: list[Model]) -> str:
    """For people; numbered, so that one can be picked."""
    return columns(HEAD, [_row(number, model) for number, model in enumerate(models, start=1)])


def _row(number: int, model: Model) -> tuple[str, ...]:
    size = f"{model.size_bytes / 1e6:,.0f} MB" if model.size_bytes else ""
    state = "recommended" if model.recommended else "" if model.exists else "not here yet"
    state = f"{state}, not here yet" if model.recommended and not model.exists else state
    mark = "*" if model.current else " "
    context = f"{model.context_length:,}" if model.context_length else ""
    return (f"{mark}{number}", model.key, state, size, context, model.device, harmless(model.description))
