"""What a key's limits cost each request: counting it, which a first token waits for, and letting it go.

    python -m benchmarks.limits [--requests 2000]

One request after the other on an embedded PostgreSQL of its own, through the pool that gateways use; `select 1` through
the same pool is what one statement costs in any case. Median and 99th percentile.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from app.keys import Key, Limits
from app.limits import Limiter
from app.postgres import open_pool

WARM_UP = 20


def told(name: str, times: list[float]) -> str:
    """One line. times: seconds."""
    hundredths = [1000 * cut for cut in statistics.quantiles(times[WARM_UP:], n=100)]
    return f"{name:<12} p50 {hundredths[49]:.2f} ms   p99 {hundredths[98]:.2f} ms"


async def main(requests: int) -> None:
    """Run."""
    limits = Limits(requests_per_minute=10**6, tokens_per_minute=10**6, streams=10)
    key = Key(id="a", tenant="t", scopes=("chat",), limits=limits, created_at=datetime.now(UTC))
    times: dict[str, list[float]] = {"select 1": [], "count it": [], "let it go": []}
    with tempfile.TemporaryDirectory() as folder:
        pool = await open_pool(None, Path(folder) / "home")
        limiter = Limiter(pool, 600)
        try:
            for number in range(requests + WARM_UP):
                marks = [time.perf_counter()]
                await pool.fetchval("select 1")
                marks.append(time.perf_counter())
                async with AsyncExitStack() as stack:
                    await stack.enter_async_context(limiter.held(key, str(number)))
                    marks.append(time.perf_counter())
                marks.append(time.perf_counter())
                for taken, begin, end in zip(times.values(), marks, marks[1:], strict=False):
                    taken.append(end - begin)
        finally:
            await pool.close()
    print(*(told(name, taken) for name, taken in times.items()), sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    asyncio.run(main(parser.parse_args().requests))
