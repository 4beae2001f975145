"""Ray Data: the same lines in the same order as without it."""

import asyncio
import json
from pathlib import Path

import asyncpg
import pytest
from test_export_stage import record, user

from app.conversations import Conversations
from app.feedback import FeedbackStore
from train import cluster, export, flow, lines, validate
from train.quality import Quality
from train.stages import Work

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Ray
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


async def test_ray_data_makes_of_lines_and_conversations_what_one_process_makes(
    pool: asyncpg.Pool, postgres_home: Path, tmp_path: Path
) -> None:
    """Lines judged in batches, and conversations read from PostgreSQL by tasks, in their order."""
    told = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello."}]
    texts = [json.dumps({"messages": told[:1] * number + told[1:]}) for number in range(1, 600)]
    lines.save(tmp_path / "data.jsonl", texts)
    for number in range(3):
        turn = await record(pool, user(f"tea {number}?"), answer=f"Yes, {number}.")
        await FeedbackStore(pool).give(turn, "", {"rating": 1.0})
    wanted = [("default", found.id) for found in await Conversations(pool).list("default")]
    alone = await export.read(wanted, postgres_home, sources=False)

    def on_ray() -> tuple[list[flow.Row], list[export.Row]]:
        quality = Quality(max_turns=500)
        work = Work({}, quality, tmp_path, tmp_path)
        with cluster.connected(tmp_path):
            files = [tmp_path / "data.jsonl"]
            judged = list(flow.on_ray(files, validate.judged_line, quality, work, len(texts)))
            return judged, list(export.on_ray(wanted, postgres_home, sources=False))

    judged, read = await asyncio.to_thread(on_ray)
    assert judged == [validate.judged_line(text, Quality(max_turns=500)) for text in texts]
    assert judged[499]["text"]
    assert judged[500]["reason"] == "too many turns"
    assert read == alone
