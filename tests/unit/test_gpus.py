"""GPUs: what each generation is good for, as docs/models.md tells it, and what a driver says."""

import os
from pathlib import Path

import pytest

from app import checkup, gpus
from app.gpus import DriverFailed, Gpu, llama_cpp, parsed, runs_on, training, vllm

CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]  # as PyTorch is built for it
REFUSES = f"no: this PyTorch is built for {', '.join(CUDA_13)}"
CUDA_12_6 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


def gpu(name: str, capability: str, gigabytes: int) -> Gpu:
    (found,) = parsed(f"{name}, {capability}, {gigabytes * 1024}, 580.82")
    return found


RTX_5080, RTX_5090 = gpu("NVIDIA GeForce RTX 5080", "12.0", 16), gpu("NVIDIA GeForce RTX 5090", "12.0", 32)
RTX_4090, L40S = gpu("NVIDIA GeForce RTX 4090", "8.9", 24), gpu("NVIDIA L40S", "8.9", 48)
A100, H100 = gpu("NVIDIA A100-SXM4-80GB", "8.0", 80), gpu("NVIDIA H100", "9.0", 80)
P40, GT_730 = gpu("Tesla P40", "6.1", 24), gpu("GeForce GT 730", "3.5", 2)


@pytest.mark.parametrize(
    ("which", "family", "serves", "by_vllm", "trains"),
    [
        (RTX_5080, "Blackwell", "yes", "limited by its 16 GiB", "yes, what `mindfu plan` says fits into 16 GiB"),
        (RTX_5090, "Blackwell", "yes", "limited by its 32 GiB", "yes, what `mindfu plan` says fits into 32 GiB"),
        (RTX_4090, "Ada", "yes", "limited by its 24 GiB", "yes, what `mindfu plan` says fits into 24 GiB"),
        (L40S, "Ada", "yes", "yes", "yes"),
        (A100, "Ampere", "yes", "yes", "yes"),
        (H100, "Hopper", "yes", "yes", "yes"),
        (P40, "older than Volta", "yes", "no: older than compute capability 7.5", REFUSES),
    ],
)  # fmt: skip
def test_the_table_of_gpus(which: Gpu, family: str, serves: str, by_vllm: str, trains: str):
    """Serving GGUF models, vLLM, and training with a PyTorch for CUDA 13."""
    assert (which.family, llama_cpp(which), vllm(which), training(which, CUDA_13)) == (family, serves, by_vllm, trains)


def test_what_is_too_old_or_too_small_is_said():
    """In words that name the limit."""
    assert llama_cpp(GT_730).startswith("no")
    assert llama_cpp(gpu("RTX 3060", "8.6", 12)) == "yes, small models: 16 GB are recommended"
    assert training(H100, []) == "no: this PyTorch is built for CPUs"
    assert training(RTX_5080, CUDA_12_6).startswith("no: this PyTorch is built for sm_50")


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((8, 9), "sm_86", True),  # binaries run on later ones of the same generation
        ((8, 0), "sm_86", False),  # and not on earlier ones
        ((9, 0), "sm_86", False),
        ((12, 1), "compute_120", True),  # PTX is compiled for whatever comes later
        ((10, 0), "compute_120", False),
        ((9, 0), "sm_90a", True),  # `a` is for exactly one
        ((10, 3), "sm_100a", False),
        ((9, 0), "gfx942", False),
    ],
)
def test_which_code_runs_where(capability: tuple[int, int], built: str, runs: bool):
    """As CUDA promises for binaries and for PTX."""
    assert runs_on(capability, [built]) is runs


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """An nvidia-smi that does what the script says."""
    program = folder / gpus.SMI
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_gpu_that_this_build_does_not_use_is_told_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Both llama.cpp and PyTorch are installed for CPUs here."""
    driver(tmp_path, monkeypatch, "echo 'NVIDIA L40S, 8.9, 46068, 580.82'")
    (finding,) = checkup.graphics()
    assert finding.state == "warning"
    assert "NVIDIA L40S (Ada, sm_89, 45 GiB, driver 580.82)" in finding.told
    assert "GGML_CUDA=on" in finding.remedy


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "version mismatch"),
        ("echo 'NVIDIA L40S, [Unknown Error], 46068, 580.82'", "[Unknown Error]"),
    ],
)
def test_a_driver_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str):
    """Models run on CPUs until then, so it is a warning."""
    driver(tmp_path, monkeypatch, script)
    (finding,) = checkup.graphics()
    assert (finding.state, said in finding.told) == ("warning", True)
    assert "nvidia-smi" in finding.remedy
    with pytest.raises(DriverFailed):
        gpus.gpus()


def test_a_machine_without_a_driver_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Which is fine."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.gpus() == []
    assert [finding.state for finding in checkup.graphics()] == ["ok"]
