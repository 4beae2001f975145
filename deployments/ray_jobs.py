"""Training runs as Ray jobs: `python -m train.run`, on the head, in the Ray that serves.

A job outlives the replica that submitted it, and is found again by its name, `<run>-<attempt>`. Ray's dashboard shows
it, and so does `ray job list`.
"""

import asyncio
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from app.errors import Unavailable
from app.runs import Run
from deployments.training import MODULE, Alive


class RayJobs:
    """Processes that work on runs, as jobs of the Ray that we are in. environment: that they get, beside the head's."""

    def __init__(self, home: Path, environment: Mapping[str, str]) -> None:
        self._environment = {"MINDFU_HOME": str(home), **environment}
        self._client: JobSubmissionClient | None = None

    async def start(self, run: Run) -> None:
        """Submit an attempt at a run. Raises Unavailable."""
        # Named, because Ray would look for any cluster on this machine, and there may be several.
        here = f"RAY_ADDRESS={ray.get_runtime_context().gcs_address}"
        command = shlex.join(["env", here, sys.executable, "-m", MODULE, run.id, str(run.attempt)])
        await self._ask(
            "submit_job",
            entrypoint=command,
            submission_id=_name(run),
            runtime_env={"env_vars": self._environment, **_release()},
            metadata={"run": run.id},
        )

    async def state(self, run: Run) -> Alive:
        """Of the attempt's job. unknown: it is none of this Ray's."""
        found = {job.submission_id: job.status for job in await self._ask("list_jobs")}
        status = found.get(_name(run))
        if status is None:
            return "unknown"
        return "alive" if status in {JobStatus.PENDING, JobStatus.RUNNING} else "gone"

    async def ending(self, run: Run) -> str:
        """What Ray says of it."""
        return str((await self._ask("get_job_info", _name(run))).message)

    async def stop(self, run: Run) -> None:
        """End the attempt's job: SIGTERM, and SIGKILL where that is not enough."""
        await self._ask("stop_job", _name(run))

    async def _ask(self, method: str, *arguments: object, **named: object) -> Any:
        """An answer of Ray's job server. Raises Unavailable."""
        try:
            if self._client is None:
                self._client = await asyncio.to_thread(_client)
            return await asyncio.to_thread(getattr(self._client, method), *arguments, **named)
        except (RuntimeError, ConnectionError, OSError) as error:  # what its client raises
            raise Unavailable("Ray job server", str(error).strip().splitlines()[0]) from error


def _client() -> JobSubmissionClient:
    """Of the Ray that we are in. The variable, because RAY_ADDRESS would win over an argument, and says `local`."""
    os.environ["RAY_API_SERVER_ADDRESS"] = ray.get_runtime_context().gcs_address
    return JobSubmissionClient()


def _release() -> dict[str, str]:
    """The code that this replica runs, where the graph's `runtime_env` names one (docs/cluster.md)."""
    code = ray.get_runtime_context().runtime_env.get("working_dir")
    return {"working_dir": code} if code else {}


def _name(run: Run) -> str:
    return f"{run.id}-{run.attempt}"
