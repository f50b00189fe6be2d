"""The device, the random generators, and the versions of the software of a run."""

from __future__ import annotations

import os
import platform
import random
import subprocess
from collections.abc import Collection, Iterator
from contextlib import contextmanager
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

STREAMS = ("cuda", "xpu")  # devices that run behind the host, with streams, events, and counted memory
ACCEPTED = "cpu, cuda, cuda:<number>, xpu, xpu:<number> or mps"


def find_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is CUDA, else XPU, else MPS, else the CPU.

    ValueError if the machine has no such device.
    """
    counts = {
        "cuda": torch.cuda.device_count(),
        "xpu": torch.xpu.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "cpu": 1,
    }
    if name == "auto":
        name = next(kind for kind, count in counts.items() if count)
    if name.split(":")[0] not in counts:
        raise ValueError(f"device={name} must be auto, {ACCEPTED}.")
    if name in STREAMS and "LOCAL_RANK" in os.environ:  # under torchrun every process has its own GPU
        name = f"{name}:{os.environ['LOCAL_RANK']}"
    device = torch.device(name)
    if (device.index or 0) >= counts[device.type]:
        gpus = [f"{kind}:{i}" for kind in STREAMS for i in range(counts[kind])]
        raise ValueError(f"device={name} is not on this machine; there are {', '.join(_and_cpu(gpus, counts['mps']))}.")
    if device.type in STREAMS:
        torch.get_device_module(device).set_device(device)
    return device


def _and_cpu(gpus: list[str], mps: int) -> list[str]:
    return [*gpus, *["mps"] * mps, "cpu"]


def device_name(device: torch.device) -> str:
    """The kind of a device, and of a GPU its model: runs on different ones cost different times."""
    if device.type not in STREAMS:
        return device.type
    return f"{device.type}: {torch.get_device_module(device).get_device_name(device)}"


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
    devices = {"cuda": torch.cuda.get_rng_state_all(), "xpu": torch.xpu.get_rng_state_all(), "mps": _mps_rng_state()}
    return {"cpu": torch.get_rng_state(), **devices, "python": random.getstate(), "numpy": numpy}


def _mps_rng_state() -> list[torch.Tensor]:
    return [torch.mps.get_rng_state()] if torch.backends.mps.is_available() else []


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the global random generators; one without a saved state, or of another number of GPUs, is unchanged."""
    torch.set_rng_state(state["cpu"])
    for kind, module in (("cuda", torch.cuda), ("xpu", torch.xpu)):
        if len(state.get(kind, [])) == module.device_count():
            module.set_rng_state_all(state.get(kind, []))
    if state.get("mps") and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"][0])
    if state["python"] is not None:
        random.setstate(state["python"])
    if state["numpy"] is not None:
        inner = state["numpy"]["state"]
        np.random.set_state(state["numpy"] | {"state": inner | {"key": inner["key"].numpy().astype(np.uint32)}})


@contextmanager
def forked_rng(devices: Collection[torch.device]) -> Iterator[None]:
    """Draws inside leave torch's global generators as they were: the CPU's, and those of these devices."""
    kinds = {device.type for device in devices}
    own = [device for device in devices if device.type in STREAMS]
    mps = torch.mps.get_rng_state() if "mps" in kinds else None
    with torch.random.fork_rng(own, device_type=own[0].type if own else "cuda"):
        yield
    if mps is not None:
        torch.mps.set_rng_state(mps)


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
