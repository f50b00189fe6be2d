"""Everything that a resumed run needs, and the parts that a configuration builds."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import timm.scheduler
import torch
from timm.utils import ModelEmaV3

from mtl.distributed.collectives import all_gather_object, get_rank
from mtl.distributed.sharding import load_full_state_dict, shard_optimizer_state
from mtl.engine.engine import Engine
from mtl.errors import first_line
from mtl.model import MultiTaskModel
from mtl.strategies import Strategy
from mtl.system import environment
from mtl.tasks import Task, loss_modules
from mtl.training.step_metrics import CosineAverage

# What torch's and timm's schedulers call the length of the run, in steps.
RUN_LENGTHS = ("t_initial", "T_max", "total_steps")
# The plain numbers of a TrainState.
DEFAULT_SKIPS = {"total": 0, "in_a_row": 0, "overflow": 0}
COUNTED = ("step", "best", "best_step", "best_metrics", "skips", "unreadable", "peak_memory", "seconds")


@dataclass
class Parts:
    """What a configuration comes to before anything is trained: all that an evaluation needs."""

    data: Any
    engine: Engine
    device: torch.device
    example: Any = None  # the inputs of two samples

    @property
    def model(self) -> MultiTaskModel:
        """The model."""
        return self.engine.model

    @property
    def tasks(self) -> list[Task]:
        """Its tasks, in their order."""
        return self.engine.tasks


@dataclass
class TrainState:
    """Everything that a resumed run needs. The place in the data follows from ``step``."""

    engine: Engine
    strategy: Strategy
    optimizer: torch.optim.Optimizer
    scheduler: Any
    ema: ModelEmaV3 | None = None  # the running average of the model's weights, where there is one
    step: int = 0
    best: float | None = None
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    skips: dict[str, int] = field(default_factory=DEFAULT_SKIPS.copy)  # steps that were not finite
    unreadable: dict[str, list[int]] = field(default_factory=dict)  # by split, the samples that were left out
    peak_memory: int | None = None  # bytes above the parameters in a step on the CPU
    seconds: float = 0.0  # of training, over all the processes it took

    def __post_init__(self) -> None:
        self.conflicts = CosineAverage([task.name for task in self.tasks])

    @property
    def model(self) -> MultiTaskModel:
        """The model that is trained."""
        return self.engine.model

    @property
    def tasks(self) -> list[Task]:
        """Its tasks, in their order."""
        return self.engine.tasks

    @property
    def evaluated(self) -> Engine:
        """The model whose metrics count: the averaged one, where there is one."""
        return self.engine if self.ema is None else self.engine.on(self.ema.module)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types only."""
        return {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "losses": loss_modules(self.tasks).state_dict(),
            "strategy": self.strategy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"name": type(self.scheduler).__name__, "state": self.scheduler.state_dict()},
            "conflicts": self.conflicts.state_dict(),
            "scaler": None if self.engine.precision.scaler is None else self.engine.precision.scaler.state_dict(),
            "rng": all_gather_object(environment.rng_state()),  # by rank
            **{name: getattr(self, name) for name in COUNTED},
            "unreadable": self.unreadable_anywhere(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up another run's state; ValueError if it belongs to another model."""
        try:
            load_full_state_dict(self.model, state["model"])
            if self.ema is not None:
                load_full_state_dict(self.ema.module, state["ema"] or state["model"])
            loss_modules(self.tasks).load_state_dict(state["losses"])
            self.strategy.load_state_dict(state["strategy"])
            self.optimizer.load_state_dict(state["optimizer"])
            shard_optimizer_state(self.optimizer)
            self._load_scheduler(**state["scheduler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"The checkpoint is of another configuration: {first_line(error)}") from error
        if state["conflicts"] is not None:
            self.conflicts.load_state_dict(state["conflicts"])
        for name in COUNTED:
            setattr(self, name, copy.deepcopy(state[name]))
        if state["scaler"] is not None and self.engine.precision.scaler is not None:
            self.engine.precision.scaler.load_state_dict(state["scaler"])
        if get_rank() < len(state["rng"]):  # else it was made by fewer processes, and this one begins anew
            environment.set_rng_state(state["rng"][get_rank()])

    def unreadable_anywhere(self) -> dict[str, list[int]]:
        """By split, the samples that any rank has left out: each reads its own part."""
        found: dict[str, list[int]] = {}
        for split, indices in (item for own in all_gather_object(self.unreadable) for item in own.items()):
            found[split] = [*found.get(split, []), *(index for index in indices if index not in found.get(split, []))]
        return found

    def _load_scheduler(self, name: str, state: dict[str, Any]) -> None:
        if name != type(self.scheduler).__name__:
            raise ValueError(f"its scheduler is {name}, not {type(self.scheduler).__name__}.")
        # The run may have been made longer: its length is the new plan's, and not what was saved. timm's schedules are
        # functions of the step; torch's go on from the last learning rate, which may be zero by now.
        lengths = {key: value for key, value in vars(self.scheduler).items() if key in RUN_LENGTHS}
        changed = [f"{key} from {state[key]} to {value}" for key, value in lengths.items() if state.get(key) != value]
        if changed and not isinstance(self.scheduler, timm.scheduler.scheduler.Scheduler):
            raise ValueError(f"torch's {name} cannot change {changed[0]}; timm's, as scheduler=cosine, can.")
        self.scheduler.load_state_dict(state)
        vars(self.scheduler).update(lengths)
