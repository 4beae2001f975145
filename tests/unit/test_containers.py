"""The Dockerfile and docker-compose.yml: what they open, what they need, what they name."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Secrets
from deployments import config

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
OPEN = {"rag", "rag-cpu", "rag-vllm"}
OURS = [name for name, service in SERVICES.items() if "build" in service]  # with what they are merged with


def test_the_dockerfile_is_clean():
    """By hadolint."""
    found = subprocess.run([BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_the_compose_file_is_what_the_specification_knows(tmp_path: Path):
    """By the Compose Specification's own schema, which finds a misspelt key."""
    check = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    found = subprocess.run([*check, ROOT / "docker-compose.yml"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    (tmp_path / "misspelt.yml").write_text((ROOT / "docker-compose.yml").read_text().replace("image:", "imgae:"))
    found = subprocess.run([*check, tmp_path / "misspelt.yml"], capture_output=True, text=True, check=False)
    assert "imgae" in found.stdout


def test_docker_compose_reads_all_profiles_once_there_are_secrets(tmp_path: Path):
    """`docker compose config`, which needs no engine; either release of it, where one is installed."""
    compose = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]
    try:
        subprocess.run([*compose, "version"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("neither `docker compose` nor `docker-compose` is installed")
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)  # where no .env is
    secrets = dict.fromkeys(("MINDFU_API_KEY", "POSTGRES_PASSWORD", "QDRANT_API_KEY"), "secret")

    def config(**given: str) -> subprocess.CompletedProcess[str]:
        profiles = [part for name in ("cpu", "gguf", "vllm", "training") for part in ("--profile", name)]
        environment = {"PATH": os.environ["PATH"], **given}
        return subprocess.run(
            [*compose, *profiles, "config"], env=environment, capture_output=True, text=True, cwd=tmp_path, check=False
        )

    read = config(**secrets)
    assert read.returncode == 0, read.stderr
    told = yaml.safe_load(read.stdout)["services"]
    assert told.keys() == SERVICES.keys()
    assert told["rag"]["environment"]["MINDFU_POSTGRES_URL"] == "postgresql://mindfu:secret@postgres/mindfu"
    assert "${" not in read.stdout
    assert config().returncode != 0


def test_the_image_gets_what_it_copies_and_nothing_else():
    """Every source is there, and let through: a home folder with conversations never gets into an image."""
    copies = re.findall(r"^COPY (?!--from)(.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = {word for line in copies for word in line.split()[:-1] if not word.startswith("--")}
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in {"#", ""}]
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == sources
    assert all((ROOT / source).exists() for source in sources)


def test_the_image_runs_without_rights():
    """The last user is none that may do everything."""
    assert re.findall(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[-1] != "0"


@pytest.mark.parametrize(
    ("profile", "services"),
    [("cpu", {"rag-cpu"}), ("gguf", {"rag"}), ("vllm", {"rag-vllm"}), ("training", {"training", "mlflow"})],
)
def test_a_profile_starts_its_services_beside_the_stores(profile: str, services: set[str]):
    """PostgreSQL and Qdrant are always there."""
    started = {name for name, service in SERVICES.items() if profile in service.get("profiles", [profile])}
    assert started == services | {"postgres", "qdrant"}


def test_only_mindfu_itself_may_be_opened_to_others():
    """All else listens on this machine, and so does MindFu until somebody says otherwise."""
    ports = {name: port for name, service in SERVICES.items() for port in service.get("ports", [])}
    assert {port for name, port in ports.items() if name in OPEN} == {"${MINDFU_LISTEN:-127.0.0.1}:11434:11434"}
    assert all(port.startswith("127.0.0.1:") for name, port in ports.items() if name not in OPEN)


def test_nothing_starts_without_its_secrets():
    """Compose refuses a variable that is not set, so nobody runs with a password that everybody knows."""
    text = (ROOT / "docker-compose.yml").read_text()
    for name in ("MINDFU_API_KEY", "POSTGRES_PASSWORD", "QDRANT_API_KEY"):
        used = re.findall(rf"\$\{{{name}([^}}]*)\}}", text)
        assert used
        assert all(how.startswith(":?") for how in used)


def test_images_of_others_are_pinned():
    """To a release, in both files."""
    images = [service["image"] for name, service in SERVICES.items() if name not in OURS]
    images += [
        image
        for image in re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        if "$" not in image and not image.startswith(("build-", "run-"))  # which are stages of ours
    ]
    assert images
    assert all(re.search(r":v?\d", image) for image in images), images


@pytest.mark.parametrize("name", ["cpu", "gguf", "vllm"])
def test_the_containers_graphs_can_be_served(name: str, tmp_path: Path):
    """`mindfu check` has nothing to say, once there is a key."""
    file = ROOT / "docker" / f"{name}.yaml"
    assert config.problems(file, Secrets.model_validate({"api_key": "k"}), tmp_path) == []
    assert any("needs an API key" in problem for problem in config.problems(file, Secrets(), tmp_path))


def test_services_run_graphs_that_are_there():
    """Every file that a command names, in folders that are mounted beside what the image has of us."""
    commands = [service["command"] for name, service in SERVICES.items() if name in OURS]
    files = {command[2] for command in commands if command[1] == "serve"}
    assert files == {"docker/cpu.yaml", "docker/gguf.yaml", "docker/vllm.yaml"}
    assert all((ROOT / file).exists() for file in files)
    served = [service for name, service in SERVICES.items() if name in OURS and service["command"][1] == "serve"]
    mounted = {f"./{folder}:/srv/mindfu/{folder}:ro" for folder in ("docker", "profiles")}
    assert all(mounted <= set(service["volumes"]) for service in served)
    assert "WORKDIR /srv/mindfu\n" in (ROOT / "Dockerfile").read_text()
