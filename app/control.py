"""What operators set while the server runs: a part of the desired state of serving. Plain values."""

from pydantic import Field

from app.messages import Strict


class Control(Strict):
    """None: as the settings say. layers: of models on GPUs, by their names; -1 is all of them."""

    model: str | None = None  # that /chat and /generate ask: a name that requests may send
    system_prompt: str | None = None
    tools: bool | None = None  # whether /chat may call the server's tools
    layers: dict[str, int] = Field(default_factory=dict)
