"""Everything that a resumed run needs, and the parts that a configuration builds."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
from mtl.training.learning_rate import WarmupCosine
from mtl.training.monitor import Monitor
from mtl.training.step_metrics import CosineAverage
from mtl.training.task_weights import WeightAverage

# What torch's and timm's schedulers call the length of the run, in steps.
RUN_LENGTHS = ("t_initial", "T_max", "total_steps")
# The attributes of a TrainState that are saved as they are.
PLAIN = ("step", "best", "best_step", "best_metrics", "waited", "peak_memory", "seconds")


@dataclass
class Parts:
    """What is built of a configuration for an evaluation; TrainState has what training adds."""

    data: Any
    engine: Engine
    device: torch.device
    example: Any = None  # the inputs of two samples
    description: Mapping[str, Any] = field(default_factory=dict)  # of the data, see mtl.data.metadata

    @property
    def model(self) -> MultiTaskModel:
        """The model."""
        return self.engine.model

    @property
    def tasks(self) -> list[Task]:
        """Its tasks, in their order."""
        return self.engine.tasks


@dataclass
class SkipCounts:
    """The steps that were skipped because a loss or a gradient was not finite."""

    total: int = 0
    in_a_row: int = 0
    overflow: int = 0  # of float16; not in the other two, for it is how the loss scale is found


@dataclass
class TrainState:
    """Everything that a resumed run needs. The place in the data follows from ``step``."""

    engine: Engine
    strategy: Strategy
    optimizer: torch.optim.Optimizer
    scheduler: Any
    ema: ModelEmaV3 | None = None  # the moving average of the model's weights
    monitor: Monitor = field(default_factory=Monitor)
    step: int = 0
    best: float | None = None
    best_step: int = 0
    waited: int = 0  # evaluations with a value since the best one
    pruned: bool = False  # a search has ended the run before its plan; not saved: a resumed run goes on
    best_metrics: dict[str, float] = field(default_factory=dict)
    skips: SkipCounts = field(default_factory=SkipCounts)
    unreadable: dict[str, list[int]] = field(default_factory=dict)  # by split, samples that could not be read
    labelled: set[str] = field(default_factory=set)  # tasks that a training step has had labels of
    peak_memory: int | None = None  # bytes that one step allocates at most
    peaks: dict[str, int] = field(default_factory=dict)  # the same by kind of step
    seconds: float = 0.0  # of training, over all the processes that the run took

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        self.conflicts, self.weights = CosineAverage(names), WeightAverage(names)

    @property
    def model(self) -> MultiTaskModel:
        """The model that is trained."""
        return self.engine.model

    @property
    def tasks(self) -> list[Task]:
        """Its tasks, in their order."""
        return self.engine.tasks

    @property
    def untrained(self) -> list[str]:
        """The tasks without a label in any training step so far, on any rank."""
        return [task.name for task in self.tasks if task.name not in self.labelled]

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
            "scheduler": {"name": type(self.scheduler).__name__, "state": _stateful(self.scheduler).state_dict()},
            "conflicts": self.conflicts.state_dict(),
            "weights": self.weights.state_dict(),
            "scaler": None if self.engine.precision.scaler is None else self.engine.precision.scaler.state_dict(),
            "rng": all_gather_object(environment.rng_state()),  # by rank
            "skips": asdict(self.skips),
            "unreadable": self.unreadable_on_all_ranks(),
            "labelled": sorted(self.labelled),
            "peaks": dict(self.peaks),
            **{name: getattr(self, name) for name in PLAIN},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state that a run has saved; ValueError if it belongs to another configuration."""
        try:
            load_full_state_dict(self.model, state["model"])
            if self.ema is not None:
                load_full_state_dict(self.ema.module, state["ema"] or state["model"])
            loss_modules(self.tasks).load_state_dict(state["losses"])
            self.strategy.load_state_dict(state["strategy"])
            self.optimizer.load_state_dict(state["optimizer"])
            shard_optimizer_state(self.optimizer)
            self._load_scheduler(**state["scheduler"])
            self.weights.load_state_dict(state["weights"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"The checkpoint is of another configuration: {first_line(error)}") from error
        if state["conflicts"] is not None:
            self.conflicts.load_state_dict(state["conflicts"])
        self.skips = SkipCounts(**state["skips"])
        self.unreadable = copy.deepcopy(state["unreadable"])
        self.labelled = set(state.get("labelled", [task.name for task in self.tasks]))
        self.peaks = dict(state.get("peaks", {}))
        for name in PLAIN:
            setattr(self, name, copy.deepcopy(state[name]))
        if state["scaler"] is not None and self.engine.precision.scaler is not None:
            self.engine.precision.scaler.load_state_dict(state["scaler"])
        if get_rank() < len(state["rng"]):  # a rank that the saved run did not have keeps its own
            environment.set_rng_state(state["rng"][get_rank()])

    def unreadable_on_all_ranks(self) -> dict[str, list[int]]:
        """By split, the samples that could not be read on any rank: each reads a part of every batch."""
        found: dict[str, dict[int, None]] = {}  # a dict for a set that keeps its order
        for own in all_gather_object(self.unreadable):
            for split, indices in own.items():
                found.setdefault(split, {}).update(dict.fromkeys(indices))
        return {split: list(indices) for split, indices in found.items()}

    def _load_scheduler(self, name: str, state: dict[str, Any]) -> None:
        if name != type(self.scheduler).__name__:
            raise ValueError(f"its scheduler is {name}, not {type(self.scheduler).__name__}.")
        # A resumed run may be longer: its length comes from the new plan, not from the checkpoint. Ours and timm's
        # schedules are functions of the step; torch's start from the last learning rate, which may be zero by now.
        lengths = {key: value for key, value in vars(self.scheduler).items() if key in RUN_LENGTHS}
        changed = [f"{key} from {state[key]} to {value}" for key, value in lengths.items() if state.get(key) != value]
        if changed and not isinstance(self.scheduler, WarmupCosine | timm.scheduler.scheduler.Scheduler):
            raise ValueError(f"torch's {name} cannot change {changed[0]}; scheduler=cosine and timm's can.")
        _stateful(self.scheduler).load_state_dict(state)
        vars(self.scheduler).update(lengths)


def _stateful(scheduler: Any) -> Any:
    """The scheduler whose state is saved: torch's inside of timm's plateau, which saves a part of it only."""
    return scheduler.lr_scheduler if isinstance(scheduler, timm.scheduler.PlateauLRScheduler) else scheduler
