"""How busy this machine is: processors, memory, GPUs."""

import psutil

from app.llama.devices import gpus
from app.messages import Strict

LOOKED_S = 0.1  # for how long the processors are looked at


class Gpu(Strict):
    """One that this process sees. Sizes: bytes."""

    name: str
    free: int
    total: int


class Machine(Strict):
    """cpu_percent: of all processors together. Sizes: bytes; process: of the one that was asked."""

    cpus: int
    cpu_percent: float
    memory: int
    memory_used: int
    process: int
    gpus: tuple[Gpu, ...]

    def line(self) -> str:
        """For people."""
        gpus = "".join(f"; {gpu.name}: {_gb(gpu.total - gpu.free)} of {_gb(gpu.total)} used" for gpu in self.gpus)
        return (
            f"CPU {self.cpu_percent:.0f} % of {self.cpus}; memory {_gb(self.memory_used)} of {_gb(self.memory)} used, "
            f"{_gb(self.process)} of it by the model's process{gpus}."
        )


def machine() -> Machine:
    """As it is now. Takes LOOKED_S."""
    memory = psutil.virtual_memory()
    return Machine(
        cpus=psutil.cpu_count() or 1,
        cpu_percent=psutil.cpu_percent(LOOKED_S),
        memory=memory.total,
        memory_used=memory.total - memory.available,
        process=psutil.Process().memory_info().rss,
        gpus=tuple(Gpu(name=gpu.name, free=gpu.free, total=gpu.total) for gpu in gpus()),
    )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
