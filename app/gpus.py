"""The NVIDIA GPUs of this machine by their driver, and what each is good for: docs/models.md has the table.

nvidia-smi comes with every driver. What llama.cpp itself sees, in a replica, is app/llama/devices.py.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable
from typing import NamedTuple

from app.errors import MindFuError

SMI = "nvidia-smi"
QUERY = ("--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader,nounits")
TIMEOUT_S = 20.0
GIB = 2**30  # cards are named by it: one of 24 GB has 24 GiB
# By their compute capability, which decides what compiled code can run: NVIDIA's names of the generations.
FAMILIES = (
    ((10, 0), "Blackwell"),
    ((9, 0), "Hopper"),
    ((8, 9), "Ada"),
    ((8, 0), "Ampere"),
    ((7, 5), "Turing"),
    ((7, 0), "Volta"),
)
LLAMA_CPP_FROM = (5, 0)  # ggml's CUDA kernels
VLLM_FROM = (7, 5)  # as vLLM's installation guide says
VLLM_ROOMY = 39 * GIB  # below it, 24B models fit quantised only, with a short window
COMFORTABLE = 15 * GIB  # a card of 16 GB: the least that we recommend for GGUF models
TRAINS_24B = 44 * GIB  # a card of 48 GB, where some keep a part for error correction
BUILT = re.compile(r"(?P<kind>sm|compute)_(?P<major>\d+)(?P<minor>\d)(?P<exact>[af]?)")


class Gpu(NamedTuple):
    """capability: CUDA's. memory: bytes."""

    name: str
    capability: tuple[int, int]
    memory: int
    driver: str

    @property
    def family(self) -> str:
        """NVIDIA's name of its generation."""
        return next((name for least, name in FAMILIES if self.capability >= least), "older than Volta")

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.name} ({self.family}, sm_{major}{minor}, {self.memory / GIB:.0f} GiB, driver {self.driver})"


class DriverFailed(MindFuError):
    """The driver is installed, and does not answer."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{SMI} fails: {self.reason}."


def gpus() -> list[Gpu]:
    """All of them; none where there is no NVIDIA driver. Raises DriverFailed."""
    if shutil.which(SMI) is None:
        return []
    try:
        done = subprocess.run([SMI, *QUERY], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)  # noqa: S603 - the driver's own program
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DriverFailed(str(error)) from error
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()
        raise DriverFailed(said[0].rstrip(".") if said else f"status {done.returncode}")
    return parsed(done.stdout)


def parsed(table: str) -> list[Gpu]:
    """What nvidia-smi tells. Raises DriverFailed where that is something else, as of a GPU that fell off the bus."""
    found = []
    for line in table.strip().splitlines():
        try:
            name, capability, memory, driver = (cell.strip() for cell in line.split(","))
            major, minor = capability.split(".")
            found.append(Gpu(name, (int(major), int(minor)), int(memory) * 2**20, driver))
        except ValueError as error:
            raise DriverFailed(f"it says '{line.strip()[:80]}'") from error
    return found


def llama_cpp(gpu: Gpu) -> str:
    """Whether it runs GGUF models, in words that begin with yes or no."""
    if gpu.capability < LLAMA_CPP_FROM:
        return "no: older than compute capability 5.0"
    return "yes" if gpu.memory >= COMFORTABLE else "yes, small models: 16 GB are recommended"


def vllm(gpu: Gpu) -> str:
    """Whether vLLM supports it."""
    if gpu.capability < VLLM_FROM:
        return "no: older than compute capability 7.5"
    return "yes" if gpu.memory >= VLLM_ROOMY else f"limited by its {gpu.memory / GIB:.0f} GiB"


def training(gpu: Gpu, built_for: Iterable[str]) -> str:
    """Whether this PyTorch can train on it. built_for: `torch.cuda.get_arch_list()`, empty for a build for CPUs."""
    built_for = list(built_for)
    if not built_for:
        return "no: this PyTorch is built for CPUs"
    if not runs_on(gpu.capability, built_for):
        return f"no: this PyTorch is built for {', '.join(built_for)}"
    return "yes" if gpu.memory >= TRAINS_24B else f"yes, what `mindfu plan` says fits into {gpu.memory / GIB:.0f} GiB"


def runs_on(capability: tuple[int, int], built_for: Iterable[str]) -> bool:
    """Whether code that was compiled for these architectures runs (CUDA's binary and PTX compatibility)."""
    return any(_fits(capability, found) for text in built_for if (found := BUILT.fullmatch(text)))


def _fits(capability: tuple[int, int], built: re.Match[str]) -> bool:
    wanted = int(built["major"]), int(built["minor"])
    if built["exact"]:
        return capability == wanted
    if built["kind"] == "compute":
        return capability >= wanted
    return capability[0] == wanted[0] and capability >= wanted
