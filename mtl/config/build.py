"""build(): a configuration becomes data, model, strategy and optimizer. The only place that instantiates."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

if TYPE_CHECKING:
    from mtl.training.state import Parts, TrainState

from mtl.config.checks import (
    check,
    chosen_tasks,
)
from mtl.config.instantiate import check_arguments, make
from mtl.errors import ConfigError, first_line

log = logging.getLogger(__name__)


# Optimizers that step all parameters in one kernel on every device, unless the configuration has another wish: on a CPU
# it is a sixth of Adam's time, a half of SGD's.
FUSED = "torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD"


def build_parts(cfg: DictConfig) -> Parts:
    """Build data, model and tasks, and rehearse them on two samples. ConfigError for every mistake."""
    import torch

    from mtl.architectures.multi_input import Concatenated, own_samples, read_own_samples
    from mtl.config.dry_run import describe_features, dry_run_backbone, dry_run_chunks, dry_run_task
    from mtl.data.loader import Batches, sequential
    from mtl.engine.engine import Engine
    from mtl.engine.precision import DTYPES, Precision
    from mtl.model import MultiTaskModel
    from mtl.system.environment import find_device
    from mtl.tasks import Task
    from mtl.training.evaluation import to_device
    from mtl.training.state import Parts

    try:
        device = find_device(cfg.device)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    described = {key: value for key, value in cfg.data.items() if key != "on_error"}
    data = make("data", described, seed=cfg.seed)
    names = chosen_tasks(cfg)
    if not set(names) <= set(data.targets):
        raise ConfigError(
            f"heads and losses have the tasks {', '.join(names)}, but data has the targets {', '.join(data.targets)}."
        )
    two, skips = sequential(min(2, len(data.val)), 2), cfg.data.get("on_error", "raise")
    inputs, targets = next(iter(Batches(data.val, two, cfg.seed, split="val", on_error=skips)))
    backbone = make("backbone", cfg.backbone, **data.input_info)
    sizes = {key: value for key, value in data.input_info.items() if key == "image_size"}  # what dense heads resize to
    known = sizes | getattr(backbone, "feature_info", {})
    separate = getattr(data, "multi_input", False)
    backbone = Concatenated(backbone, names) if separate else backbone
    features = dry_run_backbone(backbone, inputs)
    known = describe_features(features[0] if separate else features) | known
    heads = {task: make(f"heads.{task}", node, **known) for task, node in cfg.heads.items() if task in names}
    try:
        model = MultiTaskModel(backbone, heads, cfg.share)
    except KeyError as error:
        raise ConfigError(f"heads: torch reserves a task's name: {first_line(error)}.") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    tasks = [Task(task, _make_loss(cfg.losses, task), data.metrics(task)) for task in names]
    chunks = cfg.strategy.get("token_chunks", 1)
    for task in tasks:
        own = own_samples(task.name, features) if separate else features
        task.labels = dry_run_task(task, model.heads[task.name], own, targets)
        if isinstance(chunks, int) and chunks > 1:
            dry_run_chunks(task, model.heads[task.name], features, targets.get(task.name), chunks)
        task.to(device)
    if separate:
        read_own_samples(model)
    model.to(device)
    scaler = torch.amp.GradScaler(device.type) if cfg.trainer.precision == "fp16" else None
    engine = Engine(model, tasks, Precision(DTYPES[cfg.trainer.precision], scaler))
    if cfg.trainer.precision == "fp16" and device.type == "cpu":
        log.warning("trainer.precision=fp16 on the CPU is for trials only: it is slow, and bf16 needs no loss scale.")
    if cfg.trainer.precision == "bf16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        log.warning("trainer.precision=bf16: this CPU has no bf16 instructions, and is several times slower with it.")
    if cfg.trainer.channels_last:
        model.to(memory_format=torch.channels_last)
    return Parts(data, engine, device, to_device(inputs, device))


def build(cfg: DictConfig) -> tuple[Parts, TrainState]:
    """Build everything a run needs from a configuration, at its beginning. ConfigError for every mistake."""
    from timm.utils import ModelEmaV3

    from mtl.architectures.multi_input import common_space
    from mtl.distributed.collectives import get_rank
    from mtl.distributed.data_parallel import broadcast_parameters
    from mtl.engine.setup import prepare
    from mtl.system.environment import seed_everything
    from mtl.training.schedule import plan
    from mtl.training.state import RUN_LENGTHS, TrainState

    check(cfg)
    seed_everything(cfg.seed, cfg.trainer.deterministic)
    parts = build_parts(cfg)
    _check_monitor(cfg.trainer.monitor, parts.tasks)
    names = [task.name for task in parts.tasks]
    try:
        p = plan(parts.data, cfg.trainer)
        comparable = common_space(cfg) if getattr(parts.data, "multi_input", False) else {}
    except ValueError as error:
        raise ConfigError(str(error)) from error
    # It sees every batch, of which an optimizer step may have several.
    weighting = make("weighting", cfg.weighting, tasks=names, steps_per_epoch=p.per_epoch * p.batches, seed=cfg.seed)
    offered = {"weighting": weighting, "tasks": names, **comparable}
    if "rule" in cfg.strategy:
        offered["rule"] = make("strategy.rule", cfg.strategy.rule, num_tasks=len(names), seed=cfg.seed)
    own = {key: value for key, value in cfg.strategy.items() if key not in offered}
    strategy = make("strategy", own, **offered).to(parts.device)
    if cfg.strategy.get("space") == "parameters" and not any(p.requires_grad for p in parts.model.shared_parameters()):
        raise ConfigError("strategy.space=parameters: the backbone has no parameter to train; use space=features.")
    ema = None if cfg.trainer.ema is None else ModelEmaV3(parts.model, decay=cfg.trainer.ema)
    try:
        prepare(parts, strategy, cfg.trainer)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if ema is not None:
        broadcast_parameters(ema.module)
    optimizer = _make_optimizer(cfg.optimizer, parts, strategy)
    # The length of the run, under the names that torch's and timm's schedulers have for it.
    length = dict.fromkeys(RUN_LENGTHS, p.steps)
    if cfg.scheduler.get("t_in_epochs"):
        raise ConfigError("scheduler.t_in_epochs=true: schedules count optimizer steps here; leave it out.")
    scheduler = make(
        "scheduler", cfg.scheduler, optimizer=optimizer, mode=cfg.trainer.mode, t_in_epochs=False, **length
    )
    if get_rank():  # each process draws its own dropout masks
        seed_everything((cfg.seed + get_rank()) % 2**32, cfg.trainer.deterministic)
    return parts, TrainState(parts.engine, strategy, optimizer, scheduler, ema)


def _make_loss(losses: DictConfig, task: str) -> Any:
    return make("losses", losses) if "_target_" in losses else make(f"losses.{task}", losses[task])


def _make_optimizer(node: DictConfig, parts: Parts, strategy: Any) -> Any:
    import torch
    from hydra.utils import get_object

    from mtl.tasks import loss_modules

    arguments = {key: value for key, value in node.items() if key != "backbone"}
    shared_arguments = dict(node.get("backbone") or {})
    learned = (
        *parts.model.heads.parameters(),
        *strategy.parameters(),
        *loss_modules(parts.tasks).parameters(),
    )
    groups = [
        {"params": [p for p in parts.model.shared_parameters() if p.requires_grad], **shared_arguments},
        {"params": [p for p in learned if p.requires_grad]},
    ]
    if not any(group["params"] for group in groups):
        raise ConfigError("optimizer: neither the backbone nor the heads have a parameter to train.")
    # It goes through the memory without a look at the strides, and past the end of a parameter that has gaps.
    gaps = [
        name
        for name, p in parts.model.named_parameters()
        if not p.is_contiguous() and torch.empty_like(p, device="meta").stride() != p.stride()
    ]
    kernel = arguments["_target_"] in FUSED and "foreach" not in arguments and not gaps
    fused = {"fused": True} if kernel else {}
    optimizer = make("optimizer", arguments, params=[group for group in groups if group["params"]], **fused)
    if gaps and arguments.get("fused"):
        raise ConfigError(f"optimizer.fused=true needs parameters without gaps in memory, unlike {gaps[0]}; use false.")
    # torch takes any key and any value in a group of parameters, and ignores what it does not know.
    described = {"_target_": arguments["_target_"], **shared_arguments}
    check_arguments("optimizer.backbone", get_object(described["_target_"]), described, {"params": None})
    for key, value in shared_arguments.items():
        if isinstance(value, int | float) and value < 0:
            raise ConfigError(f"optimizer.backbone.{key}={value} must be 0 or more.")
    return optimizer


def _check_monitor(monitor: str, tasks: list) -> None:
    names = ["loss/total", *(f"loss/{task.name}" for task in tasks)]
    names += [f"{task.name}/{metric}" for task in tasks for metric in task.metrics]
    if monitor.removeprefix("val/") not in names:
        raise ConfigError(f"trainer.monitor={monitor} is not a metric of this run; there are {', '.join(names)}.")
