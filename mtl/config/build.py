"""build(): a configuration becomes data, model, strategy and optimizer. The only place that instantiates."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from timm.utils import ModelEmaV3
from torch import nn
from torchmetrics import Metric
from torchvision.transforms import v2

from mtl.architectures.multi_input import common_space, read_own_samples
from mtl.architectures.read import Read
from mtl.architectures.rotograd import Rotation
from mtl.config.architecture import Architecture, has_weights, without_weights
from mtl.config.checks import check, chosen_tasks
from mtl.config.common_features import check_common_features
from mtl.config.data_checks import check_data, check_keys, make_metrics, read_two
from mtl.config.dry_run import describe_features, dry_run_chunks, dry_run_task, shape_of
from mtl.config.freeze import freeze
from mtl.config.instantiate import import_target, make, make_data
from mtl.config.optimizer import make_optimizer
from mtl.config.pairing import check_kind
from mtl.config.preference import has_members
from mtl.config.rehearsal import rehearse
from mtl.config.remedies import unread
from mtl.data.loader import Batches, DataError
from mtl.data.metadata import Description, describe, describe_sample, one_sample, tensors_like
from mtl.data.preprocess import TensorPreprocess
from mtl.distributed.collectives import get_rank
from mtl.distributed.data_parallel import broadcast_parameters
from mtl.engine.engine import Engine
from mtl.engine.precision import DTYPES, Precision
from mtl.engine.setup import prepare
from mtl.errors import ConfigError, first_line, suggestion
from mtl.members import add_members
from mtl.model import MultiTaskModel, share_submodule, warn_of_moving_statistics, warn_of_random_weights
from mtl.strategies import RotoGrad
from mtl.system.environment import find_device, seed_everything, seed_python
from mtl.tasks import Task
from mtl.training.learning_rate import check_schedule
from mtl.training.loaders import to_device
from mtl.training.monitor import Monitor
from mtl.training.schedule import PLATEAU, Plan
from mtl.training.state import RUN_LENGTHS, Parts, TrainState

log = logging.getLogger(__name__)


def build(cfg: DictConfig, resumed: Description | None = None, data: Any = None) -> tuple[Parts, TrainState]:
    """Build everything that a run needs at its beginning. ConfigError for every mistake in the configuration.

    ``resumed``: the description of the data of the checkpoint that will be loaded. Then the weights that the backbone
    began with are left out, and images are normalised as before. ``data``: the data set, if it is made already.
    """
    check(cfg)
    seed_everything(cfg.seed, cfg.trainer.deterministic)
    if resumed is not None:
        cfg = without_weights(cfg)
    parts = build_parts(cfg, resumed=resumed, data=data)
    monitor = Monitor.from_config(cfg.trainer, parts.tasks)
    _check_train_samples(cfg, parts)
    warn_of_moving_statistics(parts.model.train())
    if resumed is None and not has_weights(cfg) and str(cfg.backbone._target_).startswith("mtl."):
        warn_of_random_weights(parts.model)  # another's class may load its own
    rehearse(parts, cfg.trainer, lambda: _training_targets(cfg, parts.data))
    plan = _plan(cfg, parts)
    strategy = _make_strategy(cfg, parts, plan.per_epoch * plan.batches // plan.draws)
    check_common_features(cfg, parts, strategy)
    _check_affinity(cfg, parts)
    ema = None if cfg.trainer.ema is None else ModelEmaV3(parts.model, decay=cfg.trainer.ema)
    _prepare(cfg, parts, strategy)
    if ema is not None:
        broadcast_parameters(ema.module)
    later = set(parts.model.frozen_parameters() if cfg.trainer.unfreeze_at else ())
    optimizer = make_optimizer(cfg.optimizer, parts, strategy, later)
    scheduler = _make_scheduler(cfg, optimizer, plan, monitor.mode)
    seed_python(cfg.seed)  # an import may draw numbers, as scikit-learn's does, and may have been done before
    if get_rank():  # each process draws its own dropout masks
        seed_everything((cfg.seed + get_rank()) % 2**32, cfg.trainer.deterministic)
    return parts, TrainState(parts.engine, strategy, optimizer, scheduler, ema, monitor)


def build_parts(
    cfg: DictConfig, read_as: Description | None = None, resumed: Description | None = None, data: Any = None
) -> Parts:
    """Build data, model and tasks, and run them on two samples. ConfigError for every mistake.

    ``read_as``: the description of a checkpoint's data; the files are read with its meaning. ``resumed``: the same, of
    which the configuration of the backbone and the mean and deviation of the pixels are taken alone. ``data``: the data
    set, if it is made already.
    """
    device = _find_device(cfg.device)
    data = make_data(cfg, read_as and read_as["metadata"]) if data is None else data
    check_data(data)
    names = chosen_tasks(cfg)
    if not set(names) <= set(data.targets):
        raise ConfigError(
            f"heads and losses have the tasks {', '.join(names)}, but data has the targets {', '.join(data.targets)}."
        )
    stored = (read_as or resumed or {}).get("backbone")
    architecture = Architecture(cfg, data, stored)
    _normalize(cfg, data, architecture.plain, (read_as or resumed or {}).get("normalize"))
    description = {**_describe(data), "backbone": architecture.config}
    inputs, targets = _read_two(cfg, data, "val")
    description |= {"sample": describe_sample(inputs, targets)}
    features, read = architecture.dry_run(inputs, "backbone" in (cfg.get("freeze") or ()))
    heads = _make_heads(cfg, data, architecture, read)
    model = _make_model(cfg, architecture, heads)
    tasks = [_make_task(cfg, data, task) for task in names]
    columns = getattr(data, "columns", None) or {}
    for task in tasks:
        check_kind(task, getattr(columns.get(task.name), "kind", None))
        task.labels = dry_run_task(task, heads[task.name], read[task.name], targets, cfg.heads[task.name])
    _dry_run_chunks(cfg, model, tasks, features, targets)
    for task in tasks:
        task.to(device)
    if getattr(data, "inputs_per_task", False):
        read_own_samples(model)
    if has_members(cfg):
        one_more = partial(_one_more, cfg, data, inputs, stored)
        _add_members(cfg, model, [one_more() for _ in names[1:]] if read_as is None else [])
    _place(model, device, cfg.trainer)
    engine = Engine(model, tasks, _make_precision(cfg.trainer.precision, device))
    return Parts(data, engine, device, to_device(inputs, device), description)


class Trained(NamedTuple):
    """What :func:`build_trained` makes: ``outputs`` are the model's for two samples of zeros."""

    model: MultiTaskModel
    losses: dict[str, Any]
    preprocess: Any
    outputs: dict[str, Any]


def build_trained(cfg: DictConfig, description: Description) -> Trained:
    """The model that a checkpoint's weights are for, its tasks' losses, and the data's preprocess: without the data.

    ``description`` is the checkpoint's, of the data; the model's parts see zeros in the shapes of its samples. A data
    set without a preprocess takes tensors of these shapes. ConfigError where the description is older than these, where
    the inputs were no tensors, and for every mistake.
    """
    if "sample" not in description:
        raise ConfigError(
            "its description of the data is of an older version, and lacks the preprocess, the classes and the shapes "
            "of the inputs; mtl-eval reads it, and mtl-train resume=… with a longer run writes them."
        )
    data = SimpleNamespace(**{key: description[key] for key in ("input_info", "inputs_per_task")})
    try:
        inputs = tensors_like(description["sample"]["inputs"])
    except ValueError as error:
        raise ConfigError(f"the model cannot be built without its data: {error}.") from error
    architecture = Architecture(cfg, data, description.get("backbone"))
    _, read = architecture.dry_run(inputs, "backbone" in (cfg.get("freeze") or ()))
    model = _make_model(cfg, architecture, _make_heads(cfg, data, architecture, read))
    if data.inputs_per_task:
        read_own_samples(model)
    with torch.no_grad():
        outputs = model.eval()(inputs)  # a lazy head finds its width
    if has_members(cfg):
        _add_members(cfg, model)
    state = description["preprocess"] or TensorPreprocess(one_sample(description["sample"]["inputs"])).state()
    losses = {task: _make_loss(cfg.losses, task) for task in model.heads}
    # Not by Hydra, which reads texts as "???" in its own way: a vocabulary may have them.
    arguments = {name: value for name, value in state.items() if name != "_target_"}
    return Trained(model, losses, import_target("preprocess", state)(**arguments), outputs)


# ------------------------------------------------------------------------------------------- data, model, tasks


def _find_device(name: str) -> torch.device:
    try:
        return find_device(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _normalize(cfg: DictConfig, data: Any, backbone: nn.Module | None, checkpoints: Mapping[str, Any] | None) -> None:
    """Let the data set normalise images as the backbone's weights want, or as the checkpoint's data were."""
    wanted = checkpoints or getattr(backbone, "data_config", None)
    normalize = getattr(data, "normalize", None)
    if isinstance(normalize, v2.Normalize):
        if wanted is not None:
            normalize.mean, normalize.std = list(wanted["mean"]), list(wanted["std"])
        source = "ImageNet's" if wanted is None else "the checkpoint's" if checkpoints else "the backbone's own"
        log.info("images are normalised by mean %s, std %s: %s", normalize.mean, normalize.std, source)
    elif wanted is not None and has_weights(cfg):
        log.warning(
            "the backbone's weights are for images from 0 to 1, normalised by mean %s, std %s, and the data set (%s) "
            "has no `normalize` to do so: see that its images are", *wanted.values(), type(data).__name__,
        )  # fmt: skip


def _describe(data: Any) -> dict[str, Any]:
    try:
        return describe(data)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_train_samples(cfg: DictConfig, parts: Parts) -> None:
    """The first training samples as well, which an evaluation does not need."""
    labels = {task.name: task.labels for task in parts.tasks if task.labels is not None}
    _read_two(cfg, parts.data, "train", labels)


def _read_two(cfg: DictConfig, data: Any, split: str, labels: Any = None) -> tuple[Any, Mapping[str, Any]]:
    """The first two samples of a split; ConfigError where they cannot be read, or are not what they must be."""
    try:
        inputs, targets = read_two(data, split, cfg.seed, cfg.data.get("on_error", "raise"), labels)
    except DataError as error:
        raise ConfigError(first_line(error)) from error
    check_keys(data, split, targets)
    return inputs, targets


def _training_targets(cfg: DictConfig, data: Any) -> Mapping[str, Any]:
    """The targets of eight samples from all over the training split; none where one of them cannot be read."""
    indices = np.linspace(0, len(data.train) - 1, min(8, len(data.train))).astype(int).tolist()
    try:
        return next(iter(Batches(data.train, [(0, indices)], cfg.seed)))[1]
    except DataError:  # the run will say so, or leave it out
        return {}


def _make_heads(cfg: DictConfig, data: Any, architecture: Architecture, read: Mapping[str, Any]) -> dict[str, Any]:
    """The chosen heads, whose open arguments are what the features that they read show."""
    known = {key: value for key, value in data.input_info.items() if key == "image_size"}  # what dense heads resize to
    heads = {
        task: _make_head(cfg, task, known | describe_features(features) | architecture.feature_info, features)
        for task, features in read.items()
    }
    try:
        for name in cfg.share:
            share_submodule(heads, name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return heads


def _make_model(cfg: DictConfig, architecture: Architecture, heads: Mapping[str, nn.Module]) -> MultiTaskModel:
    """The trunk under the heads, each behind its reader if it has one."""
    readers = architecture.readers
    behind = {task: head if (own := readers[task]) is None else Read(own, head) for task, head in heads.items()}
    try:
        model = MultiTaskModel(architecture.trunk, behind)
    except KeyError as error:
        raise ConfigError(f"heads: torch reserves a task's name: {first_line(error)}.") from error
    freeze(model, list(cfg.get("freeze") or ()), architecture)  # an older checkpoint's configuration has none
    return model


def _one_more(cfg: DictConfig, data: Any, inputs: Any, config: Mapping[str, Any] | None) -> MultiTaskModel:
    """Another model of the configuration, with random numbers of its own, run once so that nothing in it is lazy."""
    architecture = Architecture(cfg, data, config)
    _, read = architecture.dry_run(inputs, "backbone" in (cfg.get("freeze") or ()))
    model = _make_model(cfg, architecture, _make_heads(cfg, data, architecture, read))
    if getattr(data, "inputs_per_task", False):
        read_own_samples(model)
    with torch.no_grad():
        model.eval()(inputs)
    return model


def _add_members(cfg: DictConfig, model: MultiTaskModel, others: Sequence[MultiTaskModel] = ()) -> None:
    if cfg.trainer.unfreeze_at is not None:
        raise ConfigError(
            f"trainer.unfreeze_at={cfg.trainer.unfreeze_at} must be null with strategy=pareto_manifold: what is frozen "
            "at first has no members."
        )
    part = cfg.strategy.get("part") or ()
    try:
        add_members(model, others, [part] if isinstance(part, str) else list(part))
    except ValueError as error:
        raise ConfigError(f"strategy=pareto_manifold: {error}") from error


def _make_head(cfg: DictConfig, task: str, known: dict[str, Any], features: Any) -> nn.Module:
    key, node = f"heads.{task}", cfg.heads[task]
    if sentence := unread(key, node["_target_"], import_target(key, node), node, known, shape_of(features)):
        raise ConfigError(sentence)
    head = make(key, node, **known)
    if not isinstance(head, nn.Module):
        raise ConfigError(f"{key} must be a torch.nn.Module, but its _target_ gives a {type(head).__name__}.")
    return head


def _make_task(cfg: DictConfig, data: Any, name: str) -> Task:
    """The task's loss, and its metrics: those of the configuration, or where it names none, the data set's."""
    own = (cfg.get("metrics") or {}).get(name)
    if own is None:
        return Task(name, _make_loss(cfg.losses, name), make_metrics(data, name))
    metrics = {str(metric): make(f"metrics.{name}.{metric}", own[metric]) for metric in own}
    for metric, found in metrics.items():
        if not isinstance(found, Metric):
            raise ConfigError(f"metrics.{name}.{metric} ({type(found).__name__}) must be a torchmetrics.Metric.")
    return Task(name, _make_loss(cfg.losses, name), metrics, own_metrics=True)


def _make_loss(losses: DictConfig, task: str) -> Any:
    return make("losses", losses) if "_target_" in losses else make(f"losses.{task}", losses[task])


def _dry_run_chunks(cfg: DictConfig, model: MultiTaskModel, tasks: list[Task], features: Any, targets: Any) -> None:
    chunks = cfg.strategy.get("token_chunks", 1)
    for task in tasks if isinstance(chunks, int) and chunks > 1 else ():
        dry_run_chunks(task, model.heads[task.name], features, targets.get(task.name), chunks)


def _place(model: MultiTaskModel, device: torch.device, trainer: Any) -> None:
    """Give the model its device and memory format."""
    model.to(device)
    if trainer.channels_last:
        model.to(memory_format=torch.channels_last)


def _make_precision(name: str, device: torch.device) -> Precision:
    """The precision of the forward passes; a warning where it is slow on this device."""
    if name == "fp16" and device.type == "cpu":
        log.warning("trainer.precision=fp16 on the CPU is for trials only: it is slow, and bf16 needs no loss scale.")
    if name == "bf16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        log.warning("trainer.precision=bf16: this CPU has no bf16 instructions, and is several times slower with it.")
    return Precision(DTYPES[name], torch.amp.GradScaler(device.type) if name == "fp16" else None)


# --------------------------------------------------------------------------------------- strategy and scheduler


def _plan(cfg: DictConfig, parts: Parts) -> Plan:
    draws = getattr(import_target("strategy", cfg.strategy), "draws", 1)
    try:
        return Plan.from_data(parts.data, cfg.trainer, cfg.conflict, draws)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _make_strategy(cfg: DictConfig, parts: Parts, batches_per_epoch: int) -> Any:
    """The strategy with its weighting and its rule, on the model's device."""
    names = [task.name for task in parts.tasks]
    try:
        comparable = common_space(cfg) if getattr(parts.data, "inputs_per_task", False) else {}
    except ValueError as error:
        raise ConfigError(str(error)) from error
    # A weighting sees every batch, and an optimizer step may take several.
    weighting = make("weighting", cfg.weighting, tasks=names, steps_per_epoch=batches_per_epoch, seed=cfg.seed)
    offered = {"weighting": weighting, "tasks": names, **comparable}
    if "rule" in cfg.strategy:
        offered["rule"] = make("strategy.rule", cfg.strategy.rule, num_tasks=len(names), tasks=names, seed=cfg.seed)
    own = {key: value for key, value in cfg.strategy.items() if key not in offered}
    strategy = make("strategy", own, seed=cfg.seed, **offered).to(parts.device)
    shared = parts.engine.trained_shared_parameters() + parts.engine.trained_common_parameters()
    if cfg.strategy.get("space") == "parameters" and not shared:
        raise ConfigError("strategy.space=parameters: the backbone has no parameter to train; use space=features.")
    if strategy.part and not parts.engine.trained_shared_parameters_of(strategy.part):
        raise ConfigError(_no_such_part(cfg.strategy.part, parts.model.backbone))
    _bind(strategy, parts.model)
    return strategy


def _check_affinity(cfg: DictConfig, parts: Parts) -> None:
    shared = parts.engine.trained_shared_parameters() + parts.engine.trained_common_parameters()
    if cfg.conflict.affinity_every and not shared and cfg.trainer.unfreeze_at is None:
        raise ConfigError(
            f"conflict.affinity_every={cfg.conflict.affinity_every}: the tasks share no parameter that is trained, so "
            "that a step on one does nothing to another; use conflict.affinity_every=0."
        )


def _bind(strategy: Any, model: MultiTaskModel) -> None:
    """Let the strategy look at the model; a warning for rotations that nothing learns."""
    try:
        strategy.bind(model)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if any(isinstance(module, Rotation) for module in model.modules()) and not isinstance(strategy, RotoGrad):
        log.warning("architecture=rotograd: only strategy=rotograd learns the rotations; here they stay the identity")


def _no_such_part(part: Any, backbone: nn.Module) -> str:
    names = [name for name, module in backbone.named_modules() if name and any(True for _ in module.parameters())]
    close = suggestion(str(part), names if len(names) < 12 else [n for n in names if n.count(".") < 2])
    return f"strategy.part={part} matches no parameter of the backbone that is trained; {close}."


def _prepare(cfg: DictConfig, parts: Parts, strategy: Any) -> None:
    try:
        prepare(parts, strategy, cfg.trainer)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _make_scheduler(cfg: DictConfig, optimizer: torch.optim.Optimizer, plan: Plan, mode: str) -> Any:
    """The schedule, told the length of the run by the names that torch's and timm's schedulers have for it.

    One that follows the monitored metric is told its direction, ``mode``.
    """
    if cfg.scheduler.get("t_in_epochs"):
        raise ConfigError("scheduler.t_in_epochs=true: schedules count optimizer steps here; leave it out.")
    offered: dict[str, Any] = dict.fromkeys(RUN_LENGTHS, plan.steps) | {"t_in_epochs": False}
    target = import_target("scheduler", cfg.scheduler)
    if inspect.isclass(target) and issubclass(target, PLATEAU):  # in CyclicLR mode is another thing
        offered["mode"] = mode
        if cfg.scheduler.get("mode") not in (None, mode):
            raise ConfigError(
                f"scheduler.mode={cfg.scheduler.mode} contradicts trainer.monitor={cfg.trainer.monitor}, of which the "
                f"{mode} is best; leave scheduler.mode out."
            )

    def make_scheduler(optimizer: torch.optim.Optimizer) -> Any:
        return make("scheduler", cfg.scheduler, optimizer=optimizer, **offered)

    settings: Any = OmegaConf.to_container(cfg.scheduler, resolve=True)
    check_schedule(make_scheduler, settings, optimizer, plan)
    return make_scheduler(optimizer)
