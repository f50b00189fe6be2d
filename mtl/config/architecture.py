"""The architecture of a configuration: its trunk, its readers, and what each head reads of them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from omegaconf import DictConfig, open_dict
from torch import nn

from mtl.architectures.multi_input import Concatenated, own_samples
from mtl.config.checks import OURS, chosen_tasks
from mtl.config.dry_run import dry_run_backbone, dry_run_reader
from mtl.config.instantiate import import_target, make, takes
from mtl.config.schema import HARD
from mtl.errors import ConfigError
from mtl.pretrained import load as load_weights


class Architecture:
    """``trunk``, and by task its ``readers``, None where a head reads the trunk's features themselves.

    ``plain``: the first backbone that the architecture has made, by itself; ``has_one_backbone``: whether it is the
    only one, and runs as it is. ``config``: that of a checkpoint's backbone. ConfigError for an architecture without a
    trunk or readers.
    """

    def __init__(self, cfg: DictConfig, data: Any, config: Mapping[str, Any] | None = None) -> None:
        tasks = chosen_tasks(cfg)
        made: list[nn.Module] = []
        stored = {} if config is None else {"config": config}

        def backbone() -> nn.Module:
            with _silence() if made else nullcontext():
                made.append(_make_backbone(cfg.backbone, **data.input_info, **_features_read(cfg), **stored))
            return made[-1]

        # An older checkpoint's configuration has no architecture.
        built = make("architecture", cfg.get("architecture") or HARD, backbone=backbone, tasks=tasks, seed=cfg.seed)
        name = f"architecture ({type(built).__name__})"
        self.trunk: nn.Module = getattr(built, "trunk", None)  # type: ignore[assignment]
        if not isinstance(self.trunk, nn.Module):
            raise ConfigError(f"{name}: its trunk must be a torch.nn.Module, not {type(self.trunk).__name__}.")
        if not callable(getattr(built, "reader", None)):
            raise ConfigError(f"{name} must have a method reader(task), which gives a torch.nn.Module or None.")
        self.readers: dict[str, nn.Module | None] = {task: _reader(name, built, task) for task in tasks}
        self.plain: nn.Module | None = made[0] if made else None
        self.has_one_backbone = len(made) == 1 and any(module is made[0] for module in self.trunk.modules())
        self._concatenates = getattr(data, "inputs_per_task", False)
        if self._concatenates:
            self.trunk = Concatenated(self.trunk, tasks)

    @property
    def feature_info(self) -> dict[str, Any]:
        """What heads may ask for beside what the features show."""
        return getattr(self.plain, "feature_info", {})

    @property
    def config(self) -> Mapping[str, Any] | None:
        """From what the backbone can be built without its files, where it says so: for the checkpoint."""
        own = getattr(self.plain, "config", None)
        return own if isinstance(own, Mapping) else None

    def dry_run(self, inputs: Any, frozen: bool) -> tuple[Any, dict[str, Any]]:
        """The common features of two samples, from a trunk that may be ``frozen``, and what each task's head reads."""
        try:
            features = dry_run_backbone(self.trunk, inputs, frozen)
        except ConfigError as error:
            if self.plain is None or self.plain is self.trunk or self._concatenates:
                raise
            dry_run_backbone(self.plain, inputs)  # its own error, if the backbone by itself has one
            raise ConfigError(str(error).replace("backbone", "architecture", 1)) from error
        own = {task: own_samples(task, features) if self._concatenates else features for task in self.readers}
        return features, {
            task: own[task] if reader is None else dry_run_reader(task, reader, own[task])
            for task, reader in self.readers.items()
        }


@contextmanager
def _silence() -> Iterator[None]:
    """Without warnings of ours: the first backbone's making has said what each further one would say again."""
    log = logging.getLogger("mtl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _make_backbone(node: DictConfig, **offered: Any) -> nn.Module:
    """The backbone, with the weights of a file where ``pretrained`` names one and is no argument of its class."""
    ours: dict[str, Any] = {}
    if not takes(import_target("backbone", node), "pretrained"):
        ours = {key: node[key] for key in OURS["backbone"] if key in node}
    rest = {key: value for key, value in node.items() if key not in ours} if ours else node
    own = make("backbone", rest, **offered)
    if not isinstance(own, nn.Module):
        raise ConfigError(f"backbone must be a torch.nn.Module, but its _target_ gives a {type(own).__name__}.")
    path, mapping = ours.get("pretrained"), ours.get("mapping")
    if path is True or (mapping is not None and not path):
        raise ConfigError(
            f"backbone.pretrained={path}: {type(own).__name__} takes weights from a file, pretrained=FILE."
        )
    try:
        if path:
            load_weights(own, path, mapping)
    except ValueError as error:
        raise ConfigError(f"backbone: {error}") from error
    return own


def has_weights(cfg: DictConfig) -> bool:
    """Whether the configuration says that the backbone begins with weights, and not with random numbers."""
    node = cfg.backbone
    if "path" in node and node.path is None:  # an encoder of texts without a folder, whatever `pretrained` says
        return False
    return bool(node.get("pretrained") or (node.get("options") or {}).get("checkpoint_path"))


def without_weights(cfg: DictConfig) -> DictConfig:
    """The configuration without the weights that the backbone begins with: the model gets a checkpoint's."""
    own = copy.deepcopy(cfg)
    with open_dict(own):
        for key in ("pretrained", "mapping"):
            if key in own.backbone:
                own.backbone[key] = False if key == "pretrained" else None
        if own.backbone.get("options"):
            own.backbone.options.pop("checkpoint_path", None)
    return own


def _reader(name: str, built: Any, task: str) -> nn.Module | None:
    try:
        reader = built.reader(task)
    except Exception as error:
        raise ConfigError(f"{name}: reader({task}) fails: {error}") from error
    if reader is not None and not isinstance(reader, nn.Module):
        raise ConfigError(f"{name}: reader({task}) must give a torch.nn.Module or None, not {type(reader).__name__}.")
    return reader


def _features_read(cfg: DictConfig) -> dict[str, str]:
    """The kind of features that the heads need, as an argument for a backbone whose configuration leaves it open."""
    classes = {task: import_target(f"heads.{task}", cfg.heads[task]) for task in chosen_tasks(cfg)}
    kinds = {task: cls.reads for task, cls in classes.items() if isinstance(getattr(cls, "reads", None), str)}
    if len(set(kinds.values())) > 1 and cfg.backbone.get("features") is None:
        named = ", ".join(f"heads.{task} reads {kind}" for task, kind in kinds.items())
        raise ConfigError(f"{named}: a backbone gives one kind of features; choose heads that read the same.")
    return {"features": next(iter(kinds.values()))} if kinds else {}
