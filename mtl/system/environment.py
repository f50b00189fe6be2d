"""The device, the random generators, and the versions of the software of a run."""

from __future__ import annotations

import os
import platform
import random
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtl.version import __version__

PACKAGES = (
    "torch",
    "timm",
    "torchvision",
    "hydra-core",
    "omegaconf",
    "wandb",
    "torchmetrics",
    "numpy",
)


def find_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is CUDA, else MPS, else the CPU. ValueError if the machine has no such device."""
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if counts[kind])
    if name.split(":")[0] not in counts:
        raise ValueError(f"device={name} must be auto, cpu, cuda, cuda:<number> or mps.")
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # under torchrun every process has its own GPU
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(name)
    if (device.index or 0) >= counts[device.type]:
        available = [f"cuda:{i}" for i in range(counts["cuda"])] + ["mps"] * counts["mps"] + ["cpu"]
        raise ValueError(f"device={name} is not on this machine; there are {', '.join(available)}.")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def device_name(device: torch.device) -> str:
    """The kind of a device, and of a GPU its model: runs on different ones cost different times."""
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed every global random generator, and choose torch's deterministic or its fast algorithms."""
    seed_python(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to be deterministic
    torch.use_deterministic_algorithms(deterministic)


def seed_python(seed: int) -> None:
    """Seed the generators of Python and of NumPy."""
    random.seed(seed)
    np.random.seed(seed % 2**32)


def rng_state() -> dict[str, Any]:
    """The state of every global random generator, in tensors and plain types."""
    numpy = dict(np.random.get_state(legacy=False))
    numpy["state"] = numpy["state"] | {"key": torch.from_numpy(numpy["state"]["key"].astype(np.int64))}
    devices = torch.cuda.get_rng_state_all()
    return {"cpu": torch.get_rng_state(), "cuda": devices, "python": random.getstate(), "numpy": numpy}


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the global random generators; one without a saved state, or of another number of GPUs, is unchanged."""
    torch.set_rng_state(state["cpu"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if state["python"] is not None:
        random.setstate(state["python"])
    if state["numpy"] is not None:
        inner = state["numpy"]["state"]
        np.random.set_state(state["numpy"] | {"state": inner | {"key": inner["key"].numpy().astype(np.uint32)}})


def describe() -> dict[str, str | None]:
    """The versions of Python and of the packages, and the git revision of the working directory, None without git."""
    versions: dict[str, str | None] = {"python": platform.python_version(), "mtl": __version__}
    versions |= {package: version(package) for package in PACKAGES}
    try:
        git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        answer = subprocess.run(git, cwd=Path.cwd(), capture_output=True, text=True, timeout=10)
        versions["git"] = answer.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        versions["git"] = None
    return versions
