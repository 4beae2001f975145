"""Stage `push`: what the stage `formats` wrote, to a model hub that speaks Hugging Face's protocol.

    HF_TOKEN=… python -m train.push --input formats=.mindfu/runs/formats-… --set repo=org/name

With a model card that says what was measured. Private unless told otherwise: adapters hold what people said. It is done
when the hub lists every file with the hash that it has here.
"""

import hashlib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from io import SEEK_END, BytesIO
from pathlib import Path
from typing import BinaryIO

import huggingface_hub
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from pydantic import Field

from app.errors import InvalidRequest, Misconfigured, Unavailable
from app.messages import Strict
from train import stages
from train.stages import Manifest, Outcome, Stage, Work

CARD = "README.md"
SECRET = (stages.MANIFEST, stages.PROGRESS, ".*", "**/.*")  # never pushed: a manifest has paths of this machine
WAIT_S = 60.0
AWAY: tuple[type[Exception], ...] = tuple(
    importlib.import_module(name).TransportError for name in ("httpx", "httpx2") if importlib.util.find_spec(name)
)
"""What the hub's client raises where nobody answers: of httpx, and since its version 2 of httpx2."""


class Push(Strict):
    """The parameters of the stage `push`."""

    repo: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")  # org/name
    private: bool = True
    endpoint: str | None = None  # of a hub of your own; None: HF_ENDPOINT, or huggingface.co
    message: str = "Publish by MindFu"


def check(inputs: Mapping[str, Path], parameters: Push) -> None:
    """Raises where there is nothing to push, or nobody may."""
    if stages.manifest(inputs["formats"]).stage != "formats":
        message = f"{inputs['formats']} was not written by train.formats."
        raise InvalidRequest(message, "formats")
    if huggingface_hub.constants.is_offline_mode():
        raise Misconfigured("HF_HUB_OFFLINE", "it forbids to reach a hub", "Unset it for this command.")
    if huggingface_hub.get_token() is None:
        where = parameters.endpoint or huggingface_hub.constants.ENDPOINT
        raise Misconfigured("HF_TOKEN", f"without a token nobody may push to {where}", "Make one there, and set it.")


def make(work: Work[Push]) -> Outcome:
    """Push, and see that everything is there."""
    parameters, source = work.parameters, work.inputs["formats"]
    api = HfApi(endpoint=parameters.endpoint)
    text = card(stages.manifest(source), parameters.repo).encode()
    hub = parameters.endpoint or huggingface_hub.constants.ENDPOINT
    try:
        work.progress(0, None, f"push to {parameters.repo}")
        api.create_repo(parameters.repo, private=parameters.private, exist_ok=True)
        api.upload_file(path_or_fileobj=text, path_in_repo=CARD, repo_id=parameters.repo,
                        commit_message=parameters.message)  # fmt: skip
        done = api.upload_folder(repo_id=parameters.repo, folder_path=source, ignore_patterns=list(SECRET),
                                 commit_message=parameters.message)  # fmt: skip
        wanted = {CARD: _hashed(BytesIO(text)), **dict(_hashes(source))}
        missing = _missing(api, parameters.repo, wanted)
    except (LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        raise Misconfigured("HF_TOKEN", str(error), "Set a token of the hub.") from error
    except HfHubHTTPError as error:
        raise InvalidRequest(f"{hub} refuses: {error}", "push.repo") from error
    except AWAY as error:
        raise Unavailable(hub, str(error) or type(error).__name__, WAIT_S) from error
    if missing:
        raise Unavailable(hub, f"it does not have what was pushed: {', '.join(missing[:5])}", WAIT_S)
    return Outcome({"files": len(wanted)}, facts={"repo": parameters.repo, "commit": done.oid, "url": done.commit_url})


def card(formats: Manifest, repo: str) -> str:
    """The model card: what is in it, and how near each format is to what was trained."""
    rows = formats.facts.get("mean_difference")
    told = "".join(f"| {name} | {value} |\n" for name, value in rows.items()) if isinstance(rows, dict) else ""
    return (
        f"---\nlibrary_name: transformers\ntags: [mindfu, lora]\n---\n\n# {repo.partition('/')[2]}\n\n"
        "Tuned and exported by MindFu. Each format was loaded back; its log-probabilities differ from those of the "
        f"training stack by so many nats a token, on average:\n\n| format | nats |\n|---|---|\n{told}"
    )


def _hashes(folder: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Of what is pushed: as git knows it, and SHA-256, either of which a hub tells."""
    for name in stages.manifest(folder).outputs:
        with (folder / name).open("rb") as file:
            yield name, _hashed(file)


def _hashed(file: BinaryIO) -> tuple[str, str]:
    size = file.seek(0, SEEK_END)
    file.seek(0)
    blob, plain = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), hashlib.sha256()
    while part := file.read(2**20):
        blob.update(part)
        plain.update(part)
    return blob.hexdigest(), plain.hexdigest()


def _missing(api: HfApi, repo: str, wanted: Mapping[str, tuple[str, str]]) -> list[str]:
    """The files that the hub lacks, or has with another content."""
    found = {
        item.path: item.lfs.sha256 if item.lfs else item.blob_id
        for item in api.list_repo_tree(repo, recursive=True)
        if isinstance(item, huggingface_hub.hf_api.RepoFile)
    }
    return [name for name, hashes in wanted.items() if found.get(name) not in hashes]


STAGE = Stage(
    name="push",
    does="Push a tuned model's formats to a hub.",
    place="runs",
    inputs=("formats",),
    parameters=Push,
    make=make,
    check=check,
)

if __name__ == "__main__":
    stages.main(STAGE)
