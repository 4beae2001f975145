"""What a tool is handed beside its arguments: where it may work, what it may reach, for whom."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from app.messages import Passage
from app.tools.network import Network
from app.tools.sandbox import Sandbox

Json = dict[str, Any]
Find = Callable[[str, int], Awaitable[tuple[Passage, ...]]]


@dataclass(frozen=True)
class Context:
    """Of one caller. search: the caller's documents, by a query and how many passages. Sizes: bytes; times: seconds."""

    sandbox: Sandbox
    network: Network
    search: Find
    max_file_bytes: int = 2**20
    timeout_s: float = 10.0
