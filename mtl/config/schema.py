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

    # stop after so many steps; with max_epochs, whichever comes first
    max_steps: int | None = option(None, changeable=True, length=True)
    # stop after so many passes over the training data
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
    # whether the lowest or the highest value of monitor is the best; null: what the metric says of itself
    mode: str | None = option(None, choices=("min", "max", None))
    # processes, each with a part of every batch and, on GPUs, a device of its own
    devices: int = option(1, changeable=True)
    # the part of the model that is sharded over the processes (FSDP2); with devices above 1
    shard: str | None = option(None, choices=(None, "backbone", "all"), changeable=True)
    # the type that the forward and backward passes compute in
    precision: str = option("32", choices=("32", "bf16", "fp16"))
    compile: bool = False  # torch.compile the backbone and the heads
    channels_last: bool = False  # the memory format in which most convolutions are fastest
    grad_checkpointing: bool = False  # the backbone keeps fewer activations and recomputes them (timm models)
    sync_batchnorm: bool = False  # batch statistics of the whole batch, not of a process's part; with devices above 1
    accumulate_grad_batches: int = 1  # batches an optimizer step
    # with accumulate_grad_batches above 1, micro: each batch has weights of its own; exact: as one large batch
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
    project: str = "mtl"  # of W&B
    entity: str | None = None  # the user or the team of W&B; null: the account's own
    group: str | None = None  # null: the sweep's folder
    run_name: str | None = None  # null: the overrides of the command line
    tags: list[str] = field(default_factory=list)  # beside those for data, backbone, architecture and strategy


@dataclass
class ConflictConfig:
    """How often the task gradients are measured."""

    every: int | None = 10  # steps between those that log conflict/…, whatever else they do; null: never
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
    """The whole configuration; conf/config.yaml holds the defaults. What a comment says is what --help says."""

    # the data set, its targets and their metrics; a data set alone is a run
    data: Any = field(default=MISSING, metadata={"section": DataConfig})
    # the shared trunk: inputs -> features
    backbone: Any = MISSING
    # what the tasks share, and what each head reads of it
    architecture: Any = MISSING
    # a set of tasks, each composed from head; follows data unless it is chosen
    heads: Any = MISSING
    # a loss for each task, or one for all; follows data unless it is chosen
    losses: Any = MISSING
    # task -> name -> metric, in the place of the data set's own: +metrics.left.auroc._target_=torchmetrics.…; with {}
    # the task's loss alone is measured
    metrics: dict[str, Any] = field(default_factory=dict)
    # submodules that all heads have in common, by name, as [unembedding]
    share: list[str] = field(default_factory=list)
    # what is not trained: [backbone], [backbone:2] its first two stages, [backbone.model.conv1]
    freeze: list[str] = field(default_factory=list)
    # train these heads of the set alone, as [left]: a single-task baseline
    tasks: list[str] | None = None
    # scales each task's loss before its own backward
    weighting: Any = MISSING
    # who calls backward on what, and how the tasks' gradients are combined
    strategy: Any = MISSING
    # any of torch's or timm's; groups gives parts of the model a learning rate of their own
    optimizer: Any = MISSING
    # any of torch's or timm's; relative to each group's own learning rate
    scheduler: Any = MISSING
    # how long and how often: steps, evaluation, clipping, limits
    trainer: TrainerConfig = field(default_factory=TrainerConfig, metadata={"section": TrainerConfig})
    # Weights & Biases beside metrics.jsonl, or not
    tracker: TrackerConfig = field(default_factory=TrackerConfig, metadata={"section": TrackerConfig} | RECORDING)
    # how often the tasks' gradients are compared; it has keys and no options
    conflict: ConflictConfig = field(default_factory=ConflictConfig, metadata={"section": ConflictConfig} | RECORDING)
    # of the weights, the order of the data and all draws
    seed: int = option(0, irrelevant=True)
    # auto, cpu, cuda, cuda:1, xpu or mps
    device: str = option("auto", changeable=True, irrelevant=True)
    # a run's folder or a checkpoint to go on from; auto: the latest run of this command line
    resume: str | None = option(None, changeable=True, irrelevant=True)
    # when a sweep is run again, skip finished jobs and resume the others
    skip_finished: bool = option(False, changeable=True, irrelevant=True)
    # of the folder under outputs/
    name: str = option(MISSING, changeable=True, irrelevant=True)


# Groups that are no keys: their options go to the place that is named behind @, or beside all others.
PACKAGES = {
    "head": "one head, as in head@heads.left=mlp; its input width is filled in",
    "experiment": "a study, as in +experiment=digits: what it changes of all the groups",
}


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
