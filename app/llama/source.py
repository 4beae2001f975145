"""Where a model's file is: the demo that comes with MindFu, a path, or a repository on the Hugging Face Hub."""

import re
from pathlib import Path

from app.errors import Misconfigured
from app.settings import DEMO_MODEL

DEMO_FILE = Path(__file__).parents[1] / "demo" / "mindfu-demo.gguf"
HUB = re.compile(r"hf://(?P<repository>[^/]+/[^/]+)/(?P<file>.+\.gguf)")
SPLIT = re.compile(r"-00001-of-(?P<count>\d{5})\.gguf$")
SETTING = "llm.model"


def locate(model: str, home: Path) -> Path:
    """The GGUF of a model, downloaded into `home/models` if need be. model: as `LLMSettings.model`.

    Raises Misconfigured where there is no such file, or the Hub cannot be reached.
    """
    path = DEMO_FILE if model == DEMO_MODEL else _downloaded(model, home) if "://" in model else Path(model)
    path = path.expanduser().absolute()
    if not path.is_file():
        raise Misconfigured(SETTING, f"there is no file {path}", "Give the path of a .gguf, or hf://org/repo/file.gguf")
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise Misconfigured(SETTING, f"{path} is not a GGUF file", "Give a model in llama.cpp's format")
    return path


def present(model: str, home: Path) -> Path | None:
    """The same file where it is here already; None: it is not. Downloads nothing, and raises nothing."""
    address = HUB.fullmatch(model)
    if address is None:
        path = (DEMO_FILE if model == DEMO_MODEL else Path(model)).expanduser().absolute()
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache

    parts = (
        try_to_load_from_cache(address["repository"], name, cache_dir=home / "models")
        for name in _parts(address["file"])
    )
    found = [Path(part) for part in parts if isinstance(part, str)]
    return found[0] if len(found) == len(_parts(address["file"])) else None


def _downloaded(model: str, home: Path) -> Path:
    """hf://org/repo/folder/file.gguf, with progress on the terminal. Of a split model, all parts."""
    address = HUB.fullmatch(model)
    if address is None:
        raise Misconfigured(SETTING, f"'{model}' is no address of a model", "Write it as hf://org/repo/file.gguf")
    from huggingface_hub import hf_hub_download  # half a second that other models need not wait for

    try:
        paths = [
            hf_hub_download(address["repository"], name, cache_dir=home / "models") for name in _parts(address["file"])
        ]
    except (OSError, ValueError) as error:  # the Hub's errors are all of these two families
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "Check the address and the network, or download the file elsewhere and give its path"
        raise Misconfigured(SETTING, f"{model} cannot be downloaded ({reason})", remedy) from error
    return Path(paths[0])


def _parts(name: str) -> list[str]:
    """All files of a split model, by the name of the first; llama.cpp finds them beside each other."""
    split = SPLIT.search(name)
    if split is None:
        return [name]
    count = int(split["count"])
    return [f"{name[: split.start()]}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
