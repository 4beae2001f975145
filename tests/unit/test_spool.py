"""Turns on disk."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from app.messages import Message
from app.spool import Spool
from app.turns import Turn


def turn(content: str) -> Turn:
    return Turn(
        request_id=content,
        messages=(Message(role="user", content=content),),
        answer=Message(role="assistant", content="\0🎈"),
        model="demo",
        latency_s=1.0,
        status="complete",
        created_at=datetime.now(UTC),
    )


def test_what_was_added_waits_in_order_and_reads_back_the_same(tmp_path: Path) -> None:
    """Twenty turns within one tick of a clock keep their order."""
    spool, turns = Spool(tmp_path), [turn(str(number)) for number in range(20)]
    for one in turns:
        spool.add(one)
    assert spool.pending() == 20
    assert [spool.read(path) for path in spool.waiting()] == turns


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b'{"request_id": "a", "messages'])
def test_a_corrupt_file_is_set_aside_and_kept(tmp_path: Path, content: bytes) -> None:
    """It no longer waits, and a person can look at it."""
    spool = Spool(tmp_path)
    (tmp_path / "00-a.json").write_bytes(content)
    assert spool.read(spool.waiting()[0]) is None
    assert spool.pending() == 0
    assert (tmp_path / "00-a.json.bad").read_bytes() == content


def test_a_turn_that_was_not_finished_does_not_wait(tmp_path: Path) -> None:
    """A crash in the middle of `add` leaves a file that nobody reads: `add` had not returned."""
    (tmp_path / "00-a.unfinished").write_bytes(b'{"request_id"')
    assert Spool(tmp_path).pending() == 0


def test_only_one_replays_at_a_time(tmp_path: Path) -> None:
    """The second is told so at once, and may when the first has ended."""
    with Spool(tmp_path).replaying() as first, Spool(tmp_path).replaying() as second:
        assert (first, second) == (True, False)
    with Spool(tmp_path).replaying() as third:
        assert third
