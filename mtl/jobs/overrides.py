"""The command line of a run: its overrides, recorded with the run and restored by ``resume``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mtl.config.redact import redacted
from mtl.distributed.ranks import rank
from mtl.runs.files import OVERRIDES, read_overrides, read_yaml, run_folder, write_atomic


def name_tracker_run(cfg: DictConfig) -> DictConfig:
    """Give the tracker what tells this run from others: its name, the sweep as its group, its choices as tags."""
    hydra_cfg, tracker = HydraConfig.get(), cfg.tracker
    choices = hydra_cfg.runtime.choices
    if tracker.run_name is None:
        own = [text for text in overrides() if not text.startswith(("resume=", "skip_finished="))]
        tracker.run_name = (",".join(own) or f"{cfg.name}-{choices.strategy}-seed={cfg.seed}")[:128]  # W&B's limit
    if tracker.group is None and hydra_cfg.mode == RunMode.MULTIRUN:
        tracker.group = "-".join(Path(hydra_cfg.sweep.dir).parts[-3:])[:128]
    if tracker.group is None:  # an agent of W&B's starts each run of its sweep alone
        tracker.group = os.environ.get("WANDB_SWEEP_ID") or None
    named = (choices.get(group) for group in ("data", "backbone", "strategy"))  # none where one was written in full
    tracker.tags = [*tracker.tags, *(str(choice) for choice in named if choice is not None)]
    return cfg


def overrides(composed: Any = None) -> list[str]:
    """What a job (this one, unless told) was started with on the command line, to the letter."""
    given = (HydraConfig.get() if composed is None else composed).overrides.task
    texts: Any = OmegaConf.to_container(given, resolve=False)  # a list of OmegaConf's would give references resolved
    return texts


def expand_resume(arguments: Sequence[str]) -> list[str]:
    """The command line with ``resume=<run or checkpoint>`` replaced by all that the run was started with.

    What is given now comes after it and replaces the same keys; the run goes on in its own folder. In a sweep, and
    where there is no such run, the arguments are returned as they are: the checks will say what is wrong.
    """
    values = {_key(argument): argument.partition("=")[2].strip("'\"") for argument in arguments}
    if "resume" not in values or {"-m", "--multirun"} & {*arguments}:
        return list(arguments)
    # What auto means without a folder is known only when everything else is: newest_run.
    named = values.get("hydra.run.dir") if values["resume"] == "auto" else values["resume"]
    if named is None or (folder := run_folder(Path(named))) is None:
        return list(arguments)
    place = next(i for i, argument in enumerate(arguments) if _key(argument) == "resume")
    added = [override for override in _stored_overrides(folder) if _key(override) not in values]
    added.append("resume=auto" if values["resume"] == "auto" else f"resume={quoted(Path(named))}")
    if "hydra.run.dir" not in values:
        added.append(f"hydra.run.dir={quoted(folder)}")
    return [*arguments[:place], *added, *(a for a in arguments[place:] if _key(a) != "resume")]


def config_to_record(cfg: DictConfig, found: Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration that a run records: a trial has no W&B, what goes on has the group it had."""
    if cfg.trainer.fast_dev_run:
        cfg.tracker.mode = "disabled"
    if found is not None and cfg.tracker.group is None:
        cfg.tracker.group = found["config"]["tracker"]["group"]  # also where one job of a sweep goes on by itself
    return redacted(cfg)


def save_config(folder: Path, config: Mapping[str, Any], overrides: Sequence[str] | None) -> None:
    """Write config.yaml, and in its first line the overrides that ``expand`` reads; the first process of a run does."""
    if rank():
        return
    text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
    head = "" if overrides is None else f"{OVERRIDES}{json.dumps(without(overrides, ('resume',)))}\n"
    write_atomic(folder / "config.yaml", head + text)


def _stored_overrides(folder: Path) -> list[str]:
    own = read_overrides(folder)
    if own is not None:
        return own
    file = folder / ".hydra" / "overrides.yaml"  # it was stopped before it had written its own
    return without(read_yaml(file) if file.is_file() else [], ("resume",))


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def quoted(path: Path) -> str:
    """A path as the value of an override."""
    return "'" + str(path).replace("'", "\\'") + "'"


def without(overrides: Iterable[str], keys: Sequence[str]) -> list[str]:
    """The overrides of other keys than these and those below them."""
    return [override for override in overrides if not is_within(_key(override), keys)]


def is_within(key: str, keys: Sequence[str]) -> bool:
    """Whether a key is one of ``keys`` or below one."""
    return any(key == name or key.startswith(f"{name}.") for name in keys)
