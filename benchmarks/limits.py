"""What a key's limits cost each request: counting it before, and letting it go after.

    python -m benchmarks.limits [--requests 500]

One request after the other on an embedded PostgreSQL of its own, through the pool that gateways use; `select 1` through
the same pool is what one statement costs in any case. Median and 99th percentile.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from app.keys import Key, Limits
from app.limits import Limiter
from app.postgres import open_pool


async def measure(name: str, requests: int, work: Callable[[int], Awaitable[object]]) -> None:
    """Print one line."""
    times = []
    for number in range(-20, requests):
        began = time.perf_counter()
        await work(number)
        if number >= 0:
            times.append(1000 * (time.perf_counter() - began))
    print(f"{name:<24} p50 {statistics.median(times):.2f} ms   p99 {statistics.quantiles(times, n=100)[98]:.2f} ms")


async def main(requests: int) -> None:
    """Run."""
    key = Key(
        id="a",
        tenant="t",
        scopes=("chat",),
        limits=Limits(requests_per_minute=10**6, tokens_per_minute=10**6, streams=10),
        created_at=datetime.now(UTC),
    )
    with tempfile.TemporaryDirectory() as folder:
        pool = await open_pool(None, Path(folder) / "home")
        limiter = Limiter(pool, 600)

        async def one(number: int) -> None:
            async with limiter.held(key, str(number)):
                pass

        try:
            await measure("select 1", requests, lambda _: pool.fetchval("select 1"))
            await measure("count it", requests, lambda number: limiter._enter(key, f"only {number}"))  # noqa: SLF001 - the half that a request waits for
            await pool.execute("delete from key_streams")
            await measure("count it, let it go", requests, one)
        finally:
            await pool.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=500)
    asyncio.run(main(parser.parse_args().requests))
