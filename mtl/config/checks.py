"""The checks of a configuration that need no torch: a mistake on the command line is answered at once."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtl.config.redact import plain_secret_error
from mtl.config.schema import Config, section_options
from mtl.config.source import arguments_of, can_be_found
from mtl.data.target_names import as_list, target_name
from mtl.distributed.ranks import world_size
from mtl.errors import ConfigError, suggestion

RESERVED = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")  # Hydra's own keys of a component
# Keys beside the arguments of the class.
OURS = {
    "data": ("on_error",),
    "backbone": ("pretrained", "mapping"),  # where the class has no weights of its own
    "optimizer": ("groups", "sharing", "layer_decay", "weight_decay_exclude_1d"),
}
OWN_CODE = "code of your own is found in the current folder, in the folder of -cd, or through PYTHONPATH."
# What no optimizer takes a negative value of.
NOT_NEGATIVE = (
    "lr", "weight_decay", "momentum", "eps", "alpha", "lambd",
    "lr_decay", "momentum_decay", "initial_accumulator_value",
)  # fmt: skip
# A task of an own data set, as the command line names it.
A_HEAD = "+head@heads.colour=linear heads.colour.out_features=3"
A_LOSS = "+losses.colour._target_=torch.nn.CrossEntropyLoss"
DEFAULT_HEAD = "_default_"  # in the place of a task: the head of each target of the data that has no other
PARTS = ("backbone", "heads")  # whose parameters may have settings of their own: optimizer.groups


def check(cfg: DictConfig) -> None:
    """ConfigError, one sentence with the key, for every mistake that can be found without torch."""
    try:
        OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(" ".join(str(error).split())) from error
    _check_keys(cfg, Config, "")
    missing = sorted(
        str(key) for key in OmegaConf.missing_keys(cfg) if not str(key).startswith(f"heads.{DEFAULT_HEAD}.")
    )
    if "data.dataset._target_" in missing:
        ours = str(cfg.data["_target_"]).startswith("mtl.")
        own = "mine.Blots" if ours else cfg.data["_target_"]
        instead = "" if ours else f", in the place of data._target_={own}"
        raise ConfigError(
            "data=dataset needs your torch Dataset, and a head and a loss for each of its targets, as in "
            f"data.dataset._target_={own}{instead} {A_HEAD} {A_LOSS}."
        )
    if missing:
        raise ConfigError(f"{missing[0]} has no value: give it one, as in {missing[0]}=….")
    for section in ("data", "backbone", "architecture", "weighting", "strategy", "optimizer", "scheduler"):
        _check_component(section, cfg[section])
    if "rule" in cfg.strategy:
        _check_component("strategy.rule", cfg.strategy.rule)
    _check_settings("optimizer", {key: value for key, value in cfg.optimizer.items() if key != "groups"})
    _check_optimizer_groups(cfg.optimizer.get("groups"))
    _check_layer_decay(cfg.optimizer)
    if not isinstance(cfg.optimizer.get("sharing"), DictConfig | None):
        raise ConfigError(f"optimizer.sharing={cfg.optimizer.sharing} must be a mapping, as in optimizer.sharing.lr=….")
    for section, example in (("heads", A_HEAD), ("losses", A_LOSS)):
        if not isinstance(cfg[section], DictConfig) or not (cfg[section] or DEFAULT_HEAD in cfg.heads):
            raise ConfigError(f"{section} must name at least one task, as in {example}.")
        for task in cfg[section] if "_target_" not in cfg[section] else ():
            _check_component(f"{section}.{task}", cfg[section][task])
    if not task_names(cfg):
        raise ConfigError(f"heads.{DEFAULT_HEAD} is the head of each of data.targets, and data names none: give heads.")
    follow = "_target_" in cfg.losses or DEFAULT_HEAD in cfg.heads
    _check_tasks(task_names(cfg), task_names(cfg) if follow else list(cfg.losses))
    _check_metrics(cfg)
    _check_chosen(cfg)
    _check_options(cfg)
    _check_values(cfg)


def _check_keys(cfg: DictConfig, schema: type, prefix: str) -> None:
    # `+key=…` gets past Hydra even into a typed section, and would then be ignored in silence.
    accepted = {f.name: f for f in fields(schema)}
    for key in cfg:
        if key not in accepted:
            raise ConfigError(f"{prefix}{key!s} is not a key of the configuration; {suggestion(str(key), accepted)}.")
    for key in accepted:
        if key != "data" and (section := accepted[key].metadata.get("section")):
            _check_keys(cfg[key], section, f"{prefix}{key}.")


def _check_component(key: str, node: Any) -> None:
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ConfigError(
            f"{key} must be a mapping with a _target_, the class to build; it is {node}{_how_to_name(key, node)}."
        )
    target, ours = str(node["_target_"]), OURS.get(key, ())
    if not can_be_found(target):
        package = target.partition(".")[0]
        raise ConfigError(f"{key}._target_={target} cannot be imported (there is no package {package}); {OWN_CODE}")
    known = arguments_of(target)
    for argument in node:
        if known is not None and argument not in (*known, *RESERVED, *ours) and node[argument] is not None:
            raise ConfigError(unknown_argument(key, str(argument), target, known))


def _how_to_name(key: str, node: Any) -> str:
    """How a class or an option is named that was written in a component's place, in words."""
    if not isinstance(node, str):
        return ""
    if "." in node:
        return f"; a class is named as {key}._target_={node}"
    return f"; an option of the group head is named as head@{key}={node}" if key.startswith("heads.") else ""


def unknown_argument(key: str, argument: str, target: str, known: Collection[str]) -> str:
    """The sentence for an argument of the component at ``key`` that its class ``target`` does not take."""
    hint = suggestion(argument, known) if known else "it takes none"
    leave_out = "" if hint.startswith("did you mean") else f"; ~{key}.{argument} leaves it out"
    own = f"; a torch Dataset without splits is named as data=dataset data.dataset._target_={target}"
    whole = own if key == "data" and not target.startswith("mtl.") else ""
    return f"{key}.{argument} is not an argument of {target}; {hint}{leave_out}{whole}."


def _check_optimizer_groups(groups: Any) -> None:
    if not isinstance(groups, DictConfig | None):
        raise ConfigError(f"optimizer.groups={groups} must be a mapping, as in optimizer.groups.backbone.lr=….")
    for part, own in (groups or {}).items():
        key = f"optimizer.groups.{part!s}"
        if part not in PARTS:
            raise ConfigError(f"{key} names no part of the model; {suggestion(str(part), PARTS)}.")
        if not isinstance(own, DictConfig | None):
            raise ConfigError(f"{key}={own} must be a mapping, as in {key}.lr=….")
        _check_settings(key, own or {})


def _check_layer_decay(optimizer: DictConfig) -> None:
    decay, excluded = optimizer.get("layer_decay"), optimizer.get("weight_decay_exclude_1d", False)
    if decay is not None and not (type(decay) in (int, float) and 0 < decay <= 1):
        raise ConfigError(f"optimizer.layer_decay={decay} must be above 0 and at most 1, as 0.75, or null.")
    if not isinstance(excluded, bool):
        raise ConfigError(f"optimizer.weight_decay_exclude_1d={excluded} must be true or false.")


def _check_settings(key: str, settings: Mapping[Any, Any]) -> None:
    """ConfigError for an optimizer's argument out of range, in ``settings`` or in a group below.

    torch refuses it only when the model is built, without its key, and in a group not at all.
    """
    for name, value in settings.items():
        if isinstance(value, DictConfig):
            _check_settings(f"{key}.{name}", value)
        elif name in NOT_NEGATIVE and isinstance(value, int | float) and not value >= 0:  # nor NaN
            raise ConfigError(f"{key}.{name}={value} must be 0 or more.")
        elif name == "betas" and isinstance(value, ListConfig) and not all(0 <= beta < 1 for beta in value):
            raise ConfigError(f"{key}.betas={value} must be numbers from 0 to below 1.")


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


def _check_metrics(cfg: DictConfig) -> None:
    heads = task_names(cfg)
    for task, own in (cfg.get("metrics") or {}).items():
        if task not in heads:
            raise ConfigError(f"metrics.{task!s} names no task; {suggestion(str(task), heads)}.")
        if not isinstance(own, DictConfig | None) or "_target_" in (own or {}):
            raise ConfigError(
                f"metrics.{task} must be a mapping of metrics by name, as in +metrics.{task}.auroc._target_=…, or {{}} "
                f"for none; it is {own}."
            )
        for name, node in own.items() if own else ():
            if not re.fullmatch(r"[A-Za-z0-9_.-]+", str(name)):
                raise ConfigError(f"metrics.{task}.{name!s}: a metric's name may have letters, digits, _ . and - only.")
            _check_component(f"metrics.{task}.{name!s}", node)


def _check_chosen(cfg: DictConfig) -> None:
    chosen, heads = cfg.tasks, task_names(cfg)
    if chosen is not None and not (len(chosen) and set(chosen) <= set(heads) and len(set(chosen)) == len(chosen)):
        raise ConfigError(
            f"tasks=[{','.join(chosen)}] must name tasks of the head set, each once, or be null for all of them; "
            f"the head set has {', '.join(heads)}."
        )


def chosen_tasks(cfg: DictConfig) -> list[str]:
    """The head set's tasks that are trained, in its order: those that ``tasks`` names, or all."""
    return [task for task in task_names(cfg) if cfg.get("tasks") is None or task in cfg.tasks]


def task_names(cfg: DictConfig) -> list[str]:
    """The head set's tasks: those of ``heads``, and the data's targets where it has a head for each of them.

    The targets are those that the data name, or one for each of their ``files``.
    """
    named = [str(task) for task in cfg.heads if task != DEFAULT_HEAD]
    data = cfg.data if DEFAULT_HEAD in cfg.heads else {}
    targets = data.get("targets") or data.get("files") or ()
    own = list(targets) if isinstance(targets, DictConfig) else map(target_name, as_list(targets))
    return list(dict.fromkeys([*map(str, own), *named]))


def _check_options(cfg: DictConfig) -> None:
    """Hold each value to the choices and the minimum that the schema says of its key."""
    for name, key in section_options():
        value, minimum = OmegaConf.select(cfg, name, default=key.default), key.metadata.get("minimum", 1)
        if choices := key.metadata.get("choices"):
            _check_choice(name, value, choices)
        elif type(value) is float and not (value > 0 or value == minimum):
            raise ConfigError(f"{name}={value} must be {'0 or more' if minimum == 0 else 'above 0'}.")
        elif type(value) is int and value < minimum:  # no bool, which is an int as well
            raise ConfigError(f"{name}={value} must be {minimum} or more.")


def _check_values(cfg: DictConfig) -> None:
    trainer = cfg.trainer
    if trainer.max_steps is None and trainer.max_epochs is None and not trainer.fast_dev_run:
        raise ConfigError("trainer.max_steps and trainer.max_epochs are both null: give at least one a number.")
    if not 0 <= cfg.seed < 2**32:
        raise ConfigError(f"seed={cfg.seed} must be from 0 to {2**32 - 1}.")
    if trainer.shard is not None and cfg.conflict.audit_every is not None:
        raise ConfigError(
            f"trainer.shard={trainer.shard}: no rank has whole rows over the parameters; use conflict.audit_every=null."
        )
    _check_affinity(cfg)
    if trainer.shard is not None and trainer.precision == "fp16":
        raise ConfigError(f"trainer.shard={trainer.shard} needs trainer.precision=bf16 or 32, not fp16.")
    if trainer.unfreeze_at is not None and not cfg.freeze:
        raise ConfigError(f"trainer.unfreeze_at={trainer.unfreeze_at} needs something frozen, as in freeze=[backbone].")
    if trainer.unfreeze_at is not None and trainer.shard is not None:
        raise ConfigError(
            f"trainer.unfreeze_at={trainer.unfreeze_at}: sharded parameters stay frozen; use trainer.shard=null."
        )
    if trainer.ema is not None and trainer.ema >= 1:
        raise ConfigError(f"trainer.ema={trainer.ema} must be above 0 and below 1, as in trainer.ema=0.999.")
    if cfg.conflict.tolerance >= 1:
        raise ConfigError(f"conflict.tolerance={cfg.conflict.tolerance} must be from 0 to below 1: it is a cosine.")
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", cfg.device):
        raise ConfigError(f"device={cfg.device} must be auto, cpu, cuda, cuda:<number>, xpu, xpu:<number> or mps.")
    if cfg.resume not in (None, "auto") and not Path(cfg.resume).exists():
        raise ConfigError(f"resume={cfg.resume} does not exist: give a run folder, a checkpoint, or auto.")
    if (words := plain_secret_error(cfg)) is not None:
        raise ConfigError(words)


def _check_affinity(cfg: DictConfig) -> None:
    trainer, conflict, tasks = cfg.trainer, cfg.conflict, chosen_tasks(cfg)
    asked = f"conflict.affinity_every={conflict.affinity_every}"
    if not conflict.affinity_every:
        return
    if len(tasks) < 2:
        raise ConfigError(f"{asked} needs two tasks or more, and {tasks[0]} is alone: use conflict.affinity_every=0.")
    if conflict.audit_every is None:
        return
    asked += f" with conflict.audit_every={conflict.audit_every} takes a step on each task alone"
    if (ranks := max(trainer.devices, world_size())) > 1:
        raise ConfigError(f"{asked}, which one process can and these {ranks} cannot: use conflict.audit_every=null.")
    if trainer.accumulate == "exact" and trainer.accumulate_grad_batches > 1:
        raise ConfigError(f"{asked}, with the whole batch in one graph: use conflict.audit_every=null.")


def _check_choice(key: str, value: Any, accepted: tuple) -> None:
    if value not in accepted:
        names = ", ".join("null" if choice is None else choice for choice in accepted)
        raise ConfigError(f"{key}={value} must be one of {names}.")
