"""Asks an adapter on trial what people were answered already, and keeps what it says for nobody to see.

It happens behind the answer that people got, one at a time in each gateway, and what comes meanwhile is passed over: a
trial slows nobody down for long. A shadow whose turn waits in the spool, or which an engine without a free place turns
away, is passed over, too: it is a sample.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing

from ray.serve.handle import DeploymentHandle

from app.answer import gather
from app.errors import EngineFailed, MindFuError, Overloaded, Unavailable
from app.messages import Delta, Done, Generate
from app.trials import Shadow, Trials
from deployments.calls import stream
from deployments.metrics import Metrics

log = logging.getLogger(__name__)


class Shadows:
    """wanted: the version that is to be asked for a model's name in a conversation, None for none."""

    def __init__(
        self,
        llm: DeploymentHandle,
        trials: Trials,
        wanted: Callable[[str, str | None], str | None],
        timeout_s: float,
        metrics: Metrics,
    ) -> None:
        self._llm, self._trials, self._wanted = llm, trials, wanted
        self._timeout_s, self._metrics = timeout_s, metrics
        self._asking: asyncio.Task[None] | None = None

    def follow(self, answered: Generate, conversation: str | None, turn_id: str) -> None:
        """Begin to ask, where a trial wants it. answered: what the engine was asked; turn_id: of the recorded turn."""
        version = self._wanted(answered.model, conversation)
        if version is None:
            return
        if self._asking is not None and not self._asking.done():
            self._metrics.shadows.labels("passed over").inc()
            return
        changes = {"adapter": version, "request_id": f"{answered.request_id}-shadow", "n": 1}
        self._asking = asyncio.create_task(self._ask(answered.model_copy(update=changes), version, turn_id))

    async def close(self) -> None:
        """Stop asking."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self, request: Generate, version: str, turn_id: str) -> None:
        outcome = "failed"
        try:
            shadow = await self._answered(request, version, turn_id)
            outcome = shadow.status if await self._trials.keep(shadow) else "passed over"
        except (Overloaded, Unavailable) as error:
            outcome = "passed over"
            log.info("A shadow of %s is passed over. %s", version, error)
        except Exception:  # the edge of a background task: nobody else would hear of it
            log.exception("a shadow of %s failed", version)
        finally:
            self._metrics.shadows.labels(outcome).inc()

    async def _answered(self, request: Generate, version: str, turn_id: str) -> Shadow:
        started, deltas = time.perf_counter(), list[Delta]()
        done: Done | None = None
        error: str | None = None
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                aclosing(stream("language model", self._llm, "generate", request)) as items,
            ):
                async for item in items:
                    if isinstance(item, Done):
                        done = item
                    else:
                        deltas.append(item)
        except (Overloaded, Unavailable):
            raise
        except TimeoutError:
            error = str(EngineFailed(f"no answer within {self._timeout_s:g} s"))
        except MindFuError as failure:
            error = str(failure)
        (first,) = gather(deltas, 1)
        truncated = done is not None and done.finish_reason == "length"
        return Shadow(
            turn_id=turn_id,
            adapter=version,
            answer=first.message(),
            status="failed" if done is None else "truncated" if truncated else "complete",
            error=error,
            completion_tokens=done.usage.completion_tokens if done else None,
            latency_s=time.perf_counter() - started,
        )
