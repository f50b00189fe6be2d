"""The configuration's checks, and build(): the only place that calls hydra.utils.instantiate.

Nothing here imports torch before build() does: a mistake on the command line is answered at once.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mtl.schema import Config, ConflictConfig, TrainerConfig
from mtl.secrecy import refusal

if TYPE_CHECKING:
    from mtl.loop import Parts, TrainState


log = logging.getLogger(__name__)


# Inside an installed package conf/ lies beside this file, in the repository one folder up.
HERE = Path(__file__).resolve().parent
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"

# Optimizers that step all parameters in one kernel on every device, unless the configuration has another wish: on a CPU
# it is a sixth of Adam's time, a half of SGD's.
FUSED = "torch.optim.Adam", "torch.optim.AdamW", "torch.optim.SGD"


class ConfigError(ValueError):
    """A mistake in the configuration: one sentence with the key, its value, and what is accepted."""


def load(overrides: Iterable[str] = ()) -> DictConfig:
    """Compose a configuration as the command line would, for notebooks and tests: ``load(["strategy=naive"])``."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", overrides=list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(composed)  # what ${hydra:…} refers to
    composed.name = str(composed.name)
    with open_dict(composed):
        del composed["hydra"]
    return composed


# ---------------------------------------------------------------------------------------------- checks


def check(cfg: DictConfig) -> None:
    """Raise ValueError, one sentence with the key, for every mistake that can be told without torch."""
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    _check_keys(cfg, Config, "")
    missing = sorted(map(str, OmegaConf.missing_keys(cfg)))
    if missing:
        raise ConfigError(f"{missing[0]} has no value: give it one, as in {missing[0]}=….")
    for section in ("data", "backbone", "weighting", "strategy", "optimizer", "scheduler"):
        _check_component(cfg, section)
    if "rule" in cfg.strategy:
        _check_component(cfg, "strategy.rule")
    if not isinstance(cfg.optimizer.get("backbone"), DictConfig | None):
        raise ConfigError(
            f"optimizer.backbone={cfg.optimizer.backbone} must be a mapping, as in optimizer.backbone.lr=…."
        )
    for section in ("heads", "losses"):
        if not isinstance(cfg[section], DictConfig) or not cfg[section]:
            raise ConfigError(f"{section} must name at least one task.")
        for task in cfg[section] if "_target_" not in cfg[section] else ():
            _check_component(cfg, f"{section}.{task}")
    _check_tasks(list(cfg.heads), list(cfg.heads if "_target_" in cfg.losses else cfg.losses))
    _check_chosen(cfg)
    _check_values(cfg)


def _check_keys(cfg: DictConfig, schema: type, prefix: str) -> None:
    # `+key=…` gets past Hydra even into a typed section, and would then be ignored in silence.
    accepted = {f.name: f for f in fields(schema)}
    for key in cfg:
        if key not in accepted:
            raise ConfigError(f"{prefix}{key!s} is not a key of the configuration; {_instead(str(key), accepted)}.")
    for key in accepted:
        default = accepted[key].default_factory
        if is_dataclass(default):
            _check_keys(cfg[key], typing.cast(type, default), f"{prefix}{key}.")


def _check_component(cfg: DictConfig, key: str) -> None:
    node = OmegaConf.select(cfg, key)
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ConfigError(f"{key} must be a mapping with a _target_, the class to build; it is {node}.")


def _check_tasks(heads: list[str], losses: list[str]) -> None:
    for task in heads:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", str(task)):
            raise ConfigError(f"heads.{task}: a task's name may have letters, digits, _ and - only.")
    if "total" in heads:
        raise ConfigError("heads.total: a task cannot be called total, for loss/total is the sum of the tasks' losses.")
    if set(heads) != set(losses):
        raise ConfigError(
            f"heads and losses must name the same tasks, but heads has {', '.join(heads)} "
            f"and losses has {', '.join(losses)}."
        )


def _check_chosen(cfg: DictConfig) -> None:
    chosen, heads = cfg.tasks, [str(task) for task in cfg.heads]
    if chosen is not None and not (len(chosen) and set(chosen) <= set(heads) and len(set(chosen)) == len(chosen)):
        raise ConfigError(
            f"tasks=[{','.join(chosen)}] must name tasks of the head set, each once, or be null for all of them; "
            f"the head set has {', '.join(heads)}."
        )


def chosen_tasks(cfg: DictConfig) -> list[str]:
    """The head set's tasks that are trained, in its order: those that ``tasks`` names, or all."""
    return [task for task in cfg.heads if cfg.get("tasks") is None or task in cfg.tasks]


def _check_values(cfg: DictConfig) -> None:
    counts = [(f"trainer.{f.name}", cfg.trainer[f.name]) for f in fields(TrainerConfig)]
    counts += [(f"conflict.{f.name}", cfg.conflict[f.name]) for f in fields(ConflictConfig)]
    for key, value in counts:
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        least = 0 if key in ("trainer.num_workers", "trainer.keep", "trainer.examples") else 1
        if not (value > 0 if isinstance(value, float) else value >= least):
            raise ConfigError(f"{key}={value} must be {'above 0' if isinstance(value, float) else f'{least} or more'}.")
    trainer = cfg.trainer
    if trainer.max_steps is None and trainer.max_epochs is None and not trainer.fast_dev_run:
        raise ConfigError("trainer.max_steps and trainer.max_epochs are both null: give at least one a number.")
    if not 0 <= cfg.seed < 2**32:
        raise ConfigError(f"seed={cfg.seed} must be from 0 to {2**32 - 1}.")
    _check_choice("trainer.mode", trainer.mode, ("min", "max"))
    _check_choice("trainer.precision", trainer.precision, ("32", "bf16", "fp16"))
    _check_choice("trainer.accumulate", trainer.accumulate, ("micro", "exact"))
    _check_choice("trainer.shard", trainer.shard, (None, "backbone", "all"))
    _check_choice("trainer.on_nan", trainer.on_nan, ("raise", "skip"))
    _check_choice("data.on_error", cfg.data.get("on_error", "raise"), ("raise", "skip"))
    if trainer.shard is not None and cfg.conflict.audit_every is not None:
        raise ConfigError(
            f"trainer.shard={trainer.shard}: no rank has whole rows over the parameters; use conflict.audit_every=null."
        )
    if trainer.shard is not None and trainer.precision == "fp16":
        raise ConfigError(f"trainer.shard={trainer.shard} needs trainer.precision=bf16 or 32, not fp16.")
    if trainer.ema is not None and trainer.ema >= 1:
        raise ConfigError(f"trainer.ema={trainer.ema} must be above 0 and below 1, as in trainer.ema=0.999.")
    _check_choice("tracker.mode", cfg.tracker.mode, (None, "online", "offline", "disabled"))
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", cfg.device):
        raise ConfigError(f"device={cfg.device} must be auto, cpu, cuda, cuda:<number> or mps.")
    if cfg.resume not in (None, "auto") and not Path(cfg.resume).exists():
        raise ConfigError(f"resume={cfg.resume} does not exist: give a run folder, a checkpoint, or auto.")
    if (words := refusal(cfg)) is not None:
        raise ConfigError(words)


def _check_choice(key: str, value: Any, accepted: tuple) -> None:
    if value not in accepted:
        names = ", ".join("null" if choice is None else choice for choice in accepted)
        raise ConfigError(f"{key}={value} must be one of {names}.")


def _instead(key: str, accepted: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(accepted), n=1)
    return f"did you mean {close[0]}" if close else f"accepted: {', '.join(accepted)}"


# ----------------------------------------------------------------------------------------------- build


def make(key: str, node: Any, **offered: Any) -> Any:
    """Build the component that ``node`` (found at ``key``) describes.

    An argument that its constructor names, that the configuration leaves open and that is in ``offered`` is filled in.
    Raises ValueError with the key for an unknown or missing argument, a wrong type, and whatever the
    constructor itself objects to.
    """
    from hydra.utils import get_object, instantiate

    raw: Any = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else node
    node = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else dict(node)
    try:
        target = get_object(node["_target_"])
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{key}._target_={node['_target_']} cannot be imported: {reason}") from error
    _check_arguments(key, target, node, offered, raw)
    filled = {name: value for name, value in offered.items() if name not in node and _takes(target, name)}
    try:
        return instantiate(node, _partial_=True, _convert_="all")(**filled)
    except Exception as error:
        # Hydra wraps what a nested component raised; any other cause is the constructor's own affair.
        inner = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
        raise ConfigError(f"{key}: {first_line(inner)}") from error


def _check_arguments(
    key: str, target: Any, node: Mapping[str, Any], offered: Mapping[str, Any], raw: Any = None
) -> None:
    import torch
    from hydra.utils import get_object

    name = node["_target_"]
    try:
        parameters = dict(inspect.signature(target).parameters)
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # written in C, or annotated with names that cannot be resolved: its own errors must do
        hints = {}
        try:
            parameters = dict(inspect.signature(target).parameters)
        except (TypeError, ValueError):
            return
    if inspect.isclass(target) and target.__init__ is torch.nn.Module.__init__:
        parameters = {}  # which takes anything, to complain about it later
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    anything = len(named) < len(parameters)
    for argument, value in node.items():
        if argument in ("_target_", "_args_", "_partial_", "_convert_", "_recursive_"):
            continue
        if argument not in named and not anything:
            raise ConfigError(f"{key}.{argument} is not an argument of {name}; {_instead(argument, named)}.")
        if not _accepts(hints.get(argument, Any), value):
            kind = str(hints[argument]).removeprefix("<class '").removesuffix("'>").replace("typing.", "")
            text = raw.get(argument, value) if isinstance(raw, dict) else value  # a reference may be to a secret
            raise ConfigError(f"{key}.{argument}={text} has the wrong type: {name} takes {kind}.")
        if isinstance(value, dict) and "_target_" in value:
            _check_arguments(f"{key}.{argument}", get_object(value["_target_"]), value, {})
    for argument, parameter in named.items():
        if parameter.default is parameter.empty and argument not in {*node, *offered} and "_args_" not in node:
            has = ", ".join(offered) or "nothing"
            raise ConfigError(
                f"{key}: {name} needs {argument}, which the configuration does not give and which cannot "
                f"be filled in (what is known here: {has})."
            )


def _accepts(hint: Any, value: Any) -> bool:
    """Whether a scalar from a configuration fits a type hint; anything but a scalar is left to the constructor."""
    if not isinstance(value, str | int | float | bool):
        return True
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_accepts(choice, value) for choice in typing.get_args(hint))
    if origin is Literal:
        return value in typing.get_args(hint)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint in (int, str, bool):
        return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
    # Tensors, containers and functions are never written as one word or number.
    return hint in (Any, object) or not inspect.isclass(origin or hint)


def _takes(target: Any, name: str) -> bool:
    try:
        return name in inspect.signature(target).parameters
    except (TypeError, ValueError):
        return False


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    text = str(error).strip() or type(error).__name__
    return text.split("\n")[0]


def build_parts(cfg: DictConfig) -> Parts:
    """Build data, model and tasks, and rehearse them on two samples. ConfigError for every mistake."""
    import torch

    from mtl.data.loader import Batches, in_order
    from mtl.environment import find_device
    from mtl.loop import Parts, to_device
    from mtl.model import MultiTaskModel, Task
    from mtl.multi_input import Concatenated, own_samples, read_own_samples
    from mtl.precision import DTYPES
    from mtl.rehearsal import describe_features, rehearse_backbone, rehearse_slices, rehearse_task

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
    two, skips = in_order(min(2, len(data.val)), 2), cfg.data.get("on_error", "raise")
    inputs, targets = next(iter(Batches(data.val, two, cfg.seed, split="val", on_error=skips)))
    backbone = make("backbone", cfg.backbone, **data.input_info)
    sizes = {key: value for key, value in data.input_info.items() if key == "image_size"}  # what dense heads resize to
    known = sizes | getattr(backbone, "feature_info", {})
    separate = getattr(data, "multi_input", False)
    backbone = Concatenated(backbone, names) if separate else backbone
    features = rehearse_backbone(backbone, inputs)
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
        task.labels = rehearse_task(task, model.heads[task.name], own, targets)
        if isinstance(chunks, int) and chunks > 1:
            rehearse_slices(task, model.heads[task.name], features, targets.get(task.name), chunks)
        task.to(device)
    if separate:
        read_own_samples(model)
    model.precision = DTYPES[cfg.trainer.precision]
    model.to(device)
    if cfg.trainer.precision == "fp16" and device.type == "cpu":
        log.warning("trainer.precision=fp16 on the CPU is for trials only: it is slow, and bf16 needs no loss scale.")
    if cfg.trainer.precision == "bf16" and device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        log.warning("trainer.precision=bf16: this CPU has no bf16 instructions, and is several times slower with it.")
    if cfg.trainer.channels_last:
        model.to(memory_format=torch.channels_last)
    return Parts(data, model, tasks, device, to_device(inputs, device))


def build(cfg: DictConfig) -> tuple[Parts, TrainState]:
    """Build everything a run needs from a configuration, at its beginning. ConfigError for every mistake."""
    import torch
    from timm.utils import ModelEmaV3

    from mtl import distributed
    from mtl.engine import prepare
    from mtl.environment import seed_everything
    from mtl.loop import RUN_LENGTHS, TrainState, plan
    from mtl.multi_input import common_space

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
        distributed.same_start(ema.module)
    optimizer = _make_optimizer(cfg.optimizer, parts, strategy)
    # The length of the run, under the names that torch's and timm's schedulers have for it.
    length = dict.fromkeys(RUN_LENGTHS, p.steps)
    if cfg.scheduler.get("t_in_epochs"):
        raise ConfigError("scheduler.t_in_epochs=true: schedules count optimizer steps here; leave it out.")
    scheduler = make(
        "scheduler", cfg.scheduler, optimizer=optimizer, mode=cfg.trainer.mode, t_in_epochs=False, **length
    )
    if distributed.rank():  # each process draws its own dropout masks
        seed_everything((cfg.seed + distributed.rank()) % 2**32, cfg.trainer.deterministic)
    scaler = torch.amp.GradScaler(parts.device.type, enabled=cfg.trainer.precision == "fp16")
    return parts, TrainState(parts.model, parts.tasks, strategy, optimizer, scheduler, ema, scaler)


def _make_loss(losses: DictConfig, task: str) -> Any:
    return make("losses", losses) if "_target_" in losses else make(f"losses.{task}", losses[task])


def _make_optimizer(node: DictConfig, parts: Parts, strategy: Any) -> Any:
    import torch
    from hydra.utils import get_object

    from mtl.model import loss_modules

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
    _check_arguments("optimizer.backbone", get_object(described["_target_"]), described, {"params": None})
    for key, value in shared_arguments.items():
        if isinstance(value, int | float) and value < 0:
            raise ConfigError(f"optimizer.backbone.{key}={value} must be 0 or more.")
    return optimizer


def _check_monitor(monitor: str, tasks: list) -> None:
    names = ["loss/total", *(f"loss/{task.name}" for task in tasks)]
    names += [f"{task.name}/{metric}" for task in tasks for metric in task.metrics]
    if monitor.removeprefix("val/") not in names:
        raise ConfigError(f"trainer.monitor={monitor} is not a metric of this run; there are {', '.join(names)}.")
