"""What a run stands on: the device, the seeds, the versions of what it was made with."""

from __future__ import annotations

import os
import platform
import random
import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

PACKAGES = (
    "mtl",
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
    """The device of that name; ``auto`` is CUDA, else MPS, else the CPU. ValueError for one that is not there."""
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if present[kind])
    if name.split(":")[0] not in present:
        raise ValueError(f"device={name} must be auto, cpu, cuda, cuda:<number> or mps.")
    device = torch.device(name)
    if (device.index or 0) >= present[device.type]:
        there = [f"cuda:{i}" for i in range(present["cuda"])] + ["mps"] * present["mps"] + ["cpu"]
        raise ValueError(f"device={name} is not on this machine; there are {', '.join(there)}.")
    return device


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed every global generator, and choose torch's deterministic algorithms or its fast ones."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is not deterministic without
    torch.use_deterministic_algorithms(deterministic)


def describe() -> dict[str, str | None]:
    """The versions of Python and the packages, and the git revision of the working folder, if it is in git."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    versions |= {package: version(package) for package in PACKAGES}
    try:
        git = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        answer = subprocess.run(git, cwd=Path.cwd(), capture_output=True, text=True, timeout=10)
        versions["git"] = answer.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        versions["git"] = None
    return versions
