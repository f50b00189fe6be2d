"""The types of the configuration's own keys, which Hydra and the checks hold a command line to; no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class TrainerConfig:
    """How long and how often. Steps are optimizer steps."""

    max_steps: int | None = None  # stop after so many steps …
    max_epochs: int | None = None  # … or passes over the training data, whichever comes first
    val_every: int | None = None  # steps between evaluations; null: after every epoch
    log_every: int = 10  # steps between lines of metrics.jsonl
    checkpoint_every: int | None = None  # steps between writes of last.pt; null: at every evaluation
    monitor: str = "loss/total"  # the metric of the val split that decides what is best.pt
    mode: str = "min"  # min | max
    patience: int | None = None  # stop after so many evaluations without a better one
    devices: int = 1  # processes, each with a part of every batch and, on GPUs, one of its own
    precision: str = "32"  # 32 | bf16 | fp16: what the forward and backward passes compute in
    compile: bool = False  # torch.compile the backbone and the heads
    channels_last: bool = False  # the memory order that convolutions are fastest in, mostly
    grad_checkpointing: bool = False  # the backbone keeps fewer activations and computes them again (timm models)
    sync_batchnorm: bool = False  # batch normalisation over the whole batch, not over each process's part
    shard: str | None = None  # null | backbone | all: what of the model is spread over the processes (FSDP2)
    accumulate_grad_batches: int = 1  # batches an optimizer step
    accumulate: str = "micro"  # micro: each batch has weights of its own | exact: as one large batch
    grad_clip_norm: float | None = None  # clip the gradient of all parameters to this norm
    ema: float | None = None  # evaluate a running average of the weights, with this decay a step; null: the weights
    keep: int = 0  # numbered checkpoints that stay beside last.pt and best.pt: the latest so many
    on_nan: str = "raise"  # raise | skip: what a step whose loss or gradient is not finite comes to
    max_skips: int = 10  # steps that on_nan=skip leaves out in a row, at most
    keep_memory: bool = True  # on a CPU with glibc, what a step frees stays with the process for the next step
    num_workers: int = 0  # processes that load data; 0: the training process itself
    deterministic: bool = False  # torch's deterministic algorithms; an operation that has none is an error
    limit_train_batches: int | None = None  # batches of an epoch
    limit_val_batches: int | None = None  # batches of an evaluation, of test as well
    overfit_batches: int | None = None  # train and evaluate on the same first batches, in order
    examples: int = 8  # samples of the test split whose predictions are drawn into examples/, where they are images
    fast_dev_run: bool = False  # one step, one batch an evaluation, no W&B: does it run at all?


@dataclass
class TrackerConfig:
    """Where Weights & Biases finds the run; metrics.jsonl is always written."""

    mode: str | None = None  # online | offline | disabled; null: WANDB_MODE, else online where a key is known
    project: str = "mtl"
    entity: str | None = None
    group: str | None = None  # null: the sweep's folder
    run_name: str | None = None  # null: the overrides of the command line
    tags: list[str] = field(default_factory=list)  # beside those for data, backbone and strategy


@dataclass
class ConflictConfig:
    """When the tasks' gradients are measured."""

    every: int | None = 10  # steps; null: never
    audit_every: int | None = None  # steps between checks of feature space against parameter space; null: never


@dataclass
class Config:
    """The whole configuration; conf/config.yaml holds the defaults."""

    data: Any = MISSING
    backbone: Any = MISSING
    heads: Any = MISSING
    losses: Any = MISSING
    share: list[str] = field(default_factory=list)
    tasks: list[str] | None = None
    weighting: Any = MISSING
    strategy: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    conflict: ConflictConfig = field(default_factory=ConflictConfig)
    seed: int = 0
    device: str = "auto"
    resume: str | None = None
    skip_finished: bool = False
    name: str = MISSING


ConfigStore.instance().store(name="schema", node=Config)
# There is one in a process; Hydra copies its sources, and with them all that is stored, for each group --help lists.
ConfigStore.__deepcopy__ = lambda store, memo: store
