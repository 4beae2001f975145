"""Find passages for a caller: of documents, of vector stores, and of the tenant's own conversations (app/memory.py).

The one place through which a request finds anything, and so the one where memory is held against what still exists.
"""

from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from ray.serve.handle import DeploymentHandle

from app.memory import COLLECTION, Memory
from app.messages import Passage, Search
from deployments.calls import call

T = TypeVar("T")


class Reads(Protocol):
    """What recall needs of the recorder."""

    memory: Memory

    async def read(self, work: Coroutine[Any, Any, T]) -> T:
        """What a store gives, or Unavailable within seconds."""


class Recall:
    """The retriever, and what PostgreSQL knows of conversations."""

    def __init__(self, retriever: DeploymentHandle, recorder: Reads) -> None:
        self._retriever, self._recorder = retriever, recorder

    async def search(self, search: Search, held: str | None = None) -> tuple[Passage, ...]:
        """Passages best first. held: the conversation that is being held, which is never remembered to itself.

        Raises Unavailable while a part that this search needs is away: PostgreSQL, where it asks for conversations.
        """
        if COLLECTION not in search.collections:
            return await self._found(search)
        recorder, memory = self._recorder, self._recorder.memory
        if held is not None:
            own = await recorder.read(memory.of_conversation(search.tenant, held))
            search = search.model_copy(update={"without": (*search.without, *own)})
        return await recorder.read(memory.told(search.tenant, await self._found(search)))

    async def _found(self, search: Search) -> tuple[Passage, ...]:
        found: tuple[Passage, ...] = await call("retriever", self._retriever, "search", search)
        return found
