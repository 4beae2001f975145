"""`mindfu backup` and `mindfu restore`, as they are typed."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.command import mindfu

pytestmark = pytest.mark.integration


def test_a_home_goes_into_an_archive_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """Without a server; what is said can be read by programs, and a second restore is refused."""
    monkeypatch.setenv("MINDFU_HOME", str(tmp_path / "home"))
    assert mindfu("backup", str(tmp_path / "backups"), "--keep", "2", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["counts"]["documents"], said["incomplete"], said["deleted"]) == (0, [], [])
    monkeypatch.setenv("MINDFU_HOME", str(tmp_path / "new"))
    assert mindfu("restore", said["archive"]) == 0
    assert "as they were on" in capsys.readouterr().out
    assert mindfu("restore", said["archive"]) == 1
    assert "a restore never writes over data" in capsys.readouterr().err


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 of moto's with one bucket, found as any S3 is: by the environment."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="backups")
    yield "s3://backups"
    server.stop()


def test_a_home_goes_to_s3_and_back(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """As into a folder: the oldest are deleted, what is no archive of ours stays, and a bucket is not made up."""
    monkeypatch.setenv("MINDFU_HOME", str(tmp_path / "home"))
    s3 = boto3.client("s3")
    for name in ("night/mindfu-20200101T000000Z.tar", "night/notes.txt"):
        s3.put_object(Bucket="backups", Key=name, Body=b"old")
    assert mindfu("backup", f"{bucket}/night", "--keep", "1", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["deleted"] == ["backups/night/mindfu-20200101T000000Z.tar"]
    kept = {one["Key"] for one in s3.list_objects_v2(Bucket="backups")["Contents"]}
    assert kept == {"night/notes.txt", said["archive"].removeprefix("s3://backups/")}
    monkeypatch.setenv("MINDFU_HOME", str(tmp_path / "new"))
    assert mindfu("restore", said["archive"]) == 0
    assert "as they were on" in capsys.readouterr().out
    assert mindfu("backup", "s3://nowhere/night") == 1
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("backup", "x.tar", "--keep", "2"), 1, "--keep goes with a folder"),
        (("backup", "x", "--keep", "0"), 2, "greater than or equal to 1"),
        (("restore", "no-such.tar"), 1, "There is nothing at no-such.tar"),
        (("backup", "nothing://bucket"), 1, "nothing://bucket"),
    ],
)
def test_what_cannot_be_is_told(
    arguments: tuple[str, ...], status: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """With an exit status that scripts see."""
    monkeypatch.setenv("MINDFU_HOME", str(tmp_path))
    assert mindfu(*arguments) == status
    assert said in capsys.readouterr().err
