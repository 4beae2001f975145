"""The LLM replica on llama.cpp: one engine, whose requests are decoded together. A plain class, without Ray."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path

from app.llama.engine import SMALL_BYTES, Engine
from app.llama.probe import probe
from app.llama.source import DEMO_FILE, locate
from app.messages import Delta, Done, Generate, Measure, ModelCard
from app.settings import LLMSettings


class LlamaCpp:
    """Serves one GGUF. home: where downloaded models are kept.

    Construction loads the model, after a trial in a child process, and raises Misconfigured with the remedy. The
    trial takes a large model's place by the demo model: it is the build that is tried, and loading twice is dear.
    """

    _engine: Engine | None = None  # until it is loaded

    def __init__(self, settings: LLMSettings, home: Path) -> None:
        path = locate(settings.model, home)
        probe(path if path.stat().st_size < SMALL_BYTES else DEMO_FILE)
        self._engine = self.engine = Engine(path, settings)

    async def generate(self, request: Generate) -> AsyncGenerator[Delta | Done, None]:
        """The answer: its first delta at once, further ones joined for `flush_s`, and one Done at the end.

        Closing the generator frees the slot. Raises InvalidRequest, ContextTooLong or Overloaded before the first
        item, EngineFailed at any time.
        """
        async with aclosing(self.engine.generate(request)) as items:
            async for item in items:
                yield item

    async def measure(self, request: Generate, texts: Sequence[str]) -> Measure:
        """Token counts of the prompt that a request renders to, and of each text alone."""
        return await self.engine.measure(request, texts)

    async def card(self) -> ModelCard:
        """What is served."""
        return self.engine.card()

    async def stats(self) -> dict[str, float]:
        """Gauges and counters by name: see `app.llama.steps.Stats`."""
        return asdict(self.engine.stats())

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises: the step loop has ended, or hangs."""
        self.engine.check()

    def __del__(self) -> None:
        """Serve calls this when the replica is to end."""
        self.close()

    def close(self) -> None:
        """Fail what is running and free the model. A second call does nothing."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()
