"""The types of the configuration's own keys, and what holds for each; no torch and no Hydra.

An option of the trainer is one line here and its use. ``option`` says beside the default what is accepted, whether a
resumed run may change it, and whether runs that differ in it are still the same experiment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from mtl.descriptions import TOLERANCE

MISSING: Any = "???"  # OmegaConf's


def option(
    default: Any,
    *,
    minimum: int = 1,
    choices: tuple[str | None, ...] = (),
    changeable: bool = False,
    length: bool = False,
    irrelevant: bool = False,
) -> Any:
    """The field of a key.

    ``minimum``: of a whole number; any other number must be above 0, or may be 0 where that is its minimum.
    ``choices``: the values that are accepted.
    ``changeable``: a resumed run may change it. ``length``: it says how long the run is, so that a finished run goes on
    when it changes. ``irrelevant``: runs that differ in it alone are compared as the same experiment.
    """
    metadata = {
        "minimum": minimum, "choices": choices, "changeable": changeable, "length": length, "irrelevant": irrelevant,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


@dataclass
class TrainerConfig:
    """How long and how often. Steps are optimizer steps."""

    # stop after so many steps, or passes over the training data, whichever comes first
    max_steps: int | None = option(None, changeable=True, length=True)
    max_epochs: int | None = option(None, changeable=True, length=True)
    # stop after so many evaluations without a better one
    patience: int | None = option(None, changeable=True, length=True)
    val_every: int | None = None  # steps between evaluations; null: after every epoch
    # steps between lines of metrics.jsonl
    log_every: int = option(10, changeable=True, irrelevant=True)
    # steps between writes of last.pt; null: at every evaluation
    checkpoint_every: int | None = option(None, changeable=True, irrelevant=True)
    # numbered checkpoints that stay beside last.pt and best.pt: the latest so many
    keep: int = option(0, minimum=0, changeable=True, irrelevant=True)
    # the metric of the val split that decides which checkpoint is best.pt; or a formula, as 2*left/f1 - size/rmse; or
    # delta_m, the mean relative change against baselines
    monitor: str = "loss/total"
    # the folder of single-task runs that trainer.monitor=delta_m compares with
    baselines: str | None = None
    # whether its lowest or its highest value is the best; null: what the metric says of itself
    mode: str | None = option(None, choices=("min", "max", None))
    # processes, each with a part of every batch and, on GPUs, a device of its own
    devices: int = option(1, changeable=True)
    # the part of the model that is sharded over the processes (FSDP2)
    shard: str | None = option(None, choices=(None, "backbone", "all"), changeable=True)
    # the type that the forward and backward passes compute in
    precision: str = option("32", choices=("32", "bf16", "fp16"))
    compile: bool = False  # torch.compile the backbone and the heads
    channels_last: bool = False  # the memory format in which most convolutions are fastest
    grad_checkpointing: bool = False  # the backbone keeps fewer activations and recomputes them (timm models)
    sync_batchnorm: bool = False  # batch normalisation over the whole batch, not over each process's part
    accumulate_grad_batches: int = 1  # batches an optimizer step
    # micro: each batch has weights of its own | exact: as one large batch
    accumulate: str = option("micro", choices=("micro", "exact"))
    # steps after which what freeze names is trained too; null: never
    unfreeze_at: int | None = None
    grad_clip_norm: float | None = None  # clip the gradient of all parameters to this norm
    ema: float | None = None  # evaluate a running average of the weights, with this decay a step; null: the weights
    # a step whose loss or gradient is not finite: stop with an error, or leave the step out
    on_nan: str = option("raise", choices=("raise", "skip"), changeable=True)
    # the most steps in a row that on_nan=skip leaves out
    max_skips: int = option(10, changeable=True)
    # on a CPU with glibc, the process keeps the memory of a step for the next one
    keep_memory: bool = option(True, changeable=True)
    # processes that load data; 0: the training process loads
    num_workers: int = option(0, minimum=0, changeable=True, irrelevant=True)
    deterministic: bool = False  # torch's deterministic algorithms; an operation that has none is an error
    limit_train_batches: int | None = None  # batches of an epoch
    limit_val_batches: int | None = None  # batches of an evaluation, on val and on test
    overfit_batches: int | None = None  # train and evaluate on the same first batches, in order
    # samples of the test split whose predictions are drawn into examples/, where they are images
    examples: int = option(8, minimum=0, changeable=True, irrelevant=True)
    fast_dev_run: bool = False  # one step, one batch an evaluation, no W&B: does it run at all?


@dataclass
class TrackerConfig:
    """Where Weights & Biases finds the run; metrics.jsonl is always written."""

    # null: WANDB_MODE, else online where a key is known, else offline
    mode: str | None = option(None, choices=(None, "online", "offline", "disabled"))
    project: str = "mtl"
    entity: str | None = None
    group: str | None = None  # null: the sweep's folder
    run_name: str | None = None  # null: the overrides of the command line
    tags: list[str] = field(default_factory=list)  # beside those for data, backbone, architecture and strategy


@dataclass
class ConflictConfig:
    """How often the task gradients are measured."""

    every: int | None = 10  # steps; null: never
    audit_every: int | None = None  # steps between comparisons of feature space with parameter space; null: never
    # steps between estimates of what a step on one task does to the others' losses, which audits check; 0: never
    affinity_every: int = option(0, minimum=0)
    # two gradients conflict where their cosine is below -tolerance; 0 counts every negative cosine, noise as well
    tolerance: float = option(TOLERANCE, minimum=0)


@dataclass
class DataConfig:
    """The key of ``data`` that is no argument of the data set."""

    # a sample that cannot be read: stop with an error, or leave the sample out
    on_error: str = option("raise", choices=("raise", "skip"), changeable=True)


RECORDING = {"changeable": True, "irrelevant": True}  # a section about the record alone


@dataclass
class Config:
    """The whole configuration; conf/config.yaml holds the defaults."""

    data: Any = field(default=MISSING, metadata={"section": DataConfig})  # and the data set's arguments
    backbone: Any = MISSING
    architecture: Any = MISSING
    heads: Any = MISSING
    losses: Any = MISSING
    metrics: dict[str, Any] = field(default_factory=dict)  # task -> name -> metric; else the data set's
    share: list[str] = field(default_factory=list)
    freeze: list[str] = field(default_factory=list)
    tasks: list[str] | None = None
    weighting: Any = MISSING
    strategy: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig, metadata={"section": TrainerConfig})
    tracker: TrackerConfig = field(default_factory=TrackerConfig, metadata={"section": TrackerConfig} | RECORDING)
    conflict: ConflictConfig = field(default_factory=ConflictConfig, metadata={"section": ConflictConfig} | RECORDING)
    seed: int = option(0, irrelevant=True)
    device: str = option("auto", changeable=True, irrelevant=True)
    resume: str | None = option(None, changeable=True, irrelevant=True)
    skip_finished: bool = option(False, changeable=True, irrelevant=True)
    name: str = option(MISSING, changeable=True, irrelevant=True)


HARD = {"_target_": "mtl.architectures.Hard"}  # the only architecture that older runs could have


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration with the keys that are newer than it, at the values that say what it did."""
    optimizer = config.get("optimizer")
    if isinstance(optimizer, Mapping):
        newer = {"layer_decay": None, "weight_decay_exclude_1d": False}
        optimizer = {**newer, **optimizer, "sharing": optimizer.get("sharing") or {"lr": None}}
    return {"architecture": dict(HARD), **config, "optimizer": optimizer}


def section_options() -> Iterator[tuple[str, Field[Any]]]:
    """Every key of every section, by its full name, as ``trainer.max_steps``."""
    for name, schema in [(key.name, key.metadata.get("section")) for key in fields(Config)]:
        yield from ((f"{name}.{key.name}", key) for key in (fields(schema) if schema else ()))


def keys_that_are(property: str) -> tuple[str, ...]:
    """The full names of the keys and of the whole sections that have a property, as ``changeable``."""
    whole = [key.name for key in fields(Config) if key.metadata.get(property)]
    return *whole, *(name for name, key in section_options() if key.metadata.get(property))
