"""The architecture of a configuration: its trunk, its readers, and what each head reads of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig
from torch import nn

from mtl.architectures.multi_input import Concatenated, own_samples
from mtl.config.checks import chosen_tasks
from mtl.config.dry_run import dry_run_backbone, dry_run_reader
from mtl.config.instantiate import import_target, make
from mtl.config.schema import HARD
from mtl.errors import ConfigError


class Architecture:
    """``trunk``, and by task its ``readers``, None where a head reads the trunk's features themselves.

    ``plain``: the first backbone that the architecture has made, by itself. ``config``: that of a checkpoint's
    backbone. ConfigError for one without a trunk or readers.
    """

    def __init__(self, cfg: DictConfig, data: Any, config: Mapping[str, Any] | None = None) -> None:
        tasks, made = chosen_tasks(cfg), []
        stored = {} if config is None else {"config": config}

        def backbone() -> nn.Module:
            own = make("backbone", cfg.backbone, **data.input_info, **_features_read(cfg), **stored)
            if not isinstance(own, nn.Module):
                raise ConfigError(f"backbone must be a torch.nn.Module, but its _target_ gives a {type(own).__name__}.")
            made.append(own)
            return own

        # An older checkpoint's configuration has no architecture.
        built = make("architecture", cfg.get("architecture") or HARD, backbone=backbone, tasks=tasks)
        name = f"architecture ({type(built).__name__})"
        self.trunk: nn.Module = getattr(built, "trunk", None)  # type: ignore[assignment]
        if not isinstance(self.trunk, nn.Module):
            raise ConfigError(f"{name}: its trunk must be a torch.nn.Module, not {type(self.trunk).__name__}.")
        if not callable(getattr(built, "reader", None)):
            raise ConfigError(f"{name} must have a method reader(task), which gives a torch.nn.Module or None.")
        self.readers: dict[str, nn.Module | None] = {task: _reader(name, built, task) for task in tasks}
        self.plain: nn.Module | None = made[0] if made else None
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
