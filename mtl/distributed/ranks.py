"""The ranks that torchrun has started, as its environment variables tell; torch is loaded only if there are several.

The rank is known from two sources. ``rank()`` reads the environment: it holds from the start of a process, and decides
who writes folders, logs and the status. ``collectives.get_rank()`` asks the process group: it is 0 outside of
``process_group()``, and is for code that communicates. Inside of ``process_group()`` the two are equal.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

TIMEOUT = timedelta(minutes=10)  # how long a rank waits for one that hangs


def rank() -> int:
    """The rank of this process; 0 in a single process."""
    return int(os.environ.get("RANK", 0)) if has_several_ranks() else 0


def world_size() -> int:
    """The number of processes that torchrun has started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def has_several_ranks() -> bool:
    """Whether torchrun has started this process and others."""
    return world_size() > 1


@contextmanager
def process_group() -> Iterator[None]:
    """Initialise the process group, and destroy it at the end; a no-op in a single process or if it exists."""
    if not has_several_ranks():
        yield
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        yield
        return
    # gloo as well: the Gram matrix and Python objects are reduced on the CPU, whatever device the model is on.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
    yield
    # Kept after an error: a rank that loses its connection would fail as well, and might be reported as the first.
    dist.destroy_process_group()
