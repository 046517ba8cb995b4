"""What computes: device, precision, threads and seeds. Other choices round otherwise, so a run records them."""

import resource
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from experiments.cli import Precision

STATM = Path("/proc/self/statm")
"""Sizes of this process in pages, on Linux."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Device, precision and threads of a run."""

    device: str = "cpu"
    precision: Literal["bf16", "fp32"] = "fp32"
    threads: int = 1

    @staticmethod
    def resolve(device: str, precision: Precision, threads: int | None) -> "Machine":
        """Turn `auto` and None into what this machine has, and set torch's threads.

        Raises:
            ValueError: a device that is not there, or fewer than one thread.
        """
        device = resolve_device(device)
        return Machine(device=device, precision=resolve_precision(precision, device), threads=resolve_threads(threads))


def seed_everything(seed: int, device: str) -> None:
    """Seed the generators that a step draws from (`torch.manual_seed` also looks for devices that are not there)."""
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type == "cuda":
        torch.cuda.manual_seed_all(seed)


def autocast(device: str, precision: str) -> torch.autocast:
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


def resolve_device(device: str) -> str:
    """`auto` → cuda where there is one, else cpu.

    Raises:
        ValueError: a device that torch does not know, or CUDA where there is none.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = device
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"unknown device {device!r}; choose from auto, cpu, cuda, cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {device!r}: this torch finds no CUDA; choose cpu or auto")
    if kind == "cuda" and (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {device!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def resolve_precision(precision: Precision, device: str) -> Literal["bf16", "fp32"]:
    """`auto` → bf16 where the hardware multiplies in it (AVX512-BF16, Ampere and later), else fp32."""
    if precision != "auto":
        return precision
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def limit_memory(num_bytes: int, device: str) -> None:
    """What this process may allocate on top of what it held at the first call: beyond it, an allocation fails and the
    process lives. With CUDA, which maps memory by its own rules, or where the system has no such limit, nothing is
    limited."""
    if torch.device(device).type == "cpu" and STATM.exists():
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (_held_bytes() + num_bytes, hard))


@cache
def _held_bytes() -> int:
    """As RLIMIT_DATA counts: a gigabyte and more for torch and Ray, most of it never touched."""
    return int(STATM.read_text().split()[5]) * resource.getpagesize()


def resolve_threads(threads: int | None) -> int:
    """Set torch's CPU threads, all cores by default; returns the count.

    Raises:
        ValueError: fewer than one.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"--threads {threads}: at least 1 is needed")
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()
