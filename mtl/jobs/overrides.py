"""The overrides of a run: recorded with it, and restored by ``resume``."""

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

TAGGED = ("data", "backbone", "architecture", "strategy")  # the groups whose choices name a run
CONFIG_FOLDER = ("-cd", "--config-dir")  # Hydra's flags
VALUED, SWEEP = (*CONFIG_FOLDER, "-c", "--cfg"), ("-m", "--multirun")


def name_tracker_run(cfg: DictConfig) -> DictConfig:
    """Name the tracker's run by its overrides, group it by its sweep, and tag it with its choices."""
    hydra_cfg, tracker = HydraConfig.get(), cfg.tracker
    choices = hydra_cfg.runtime.choices
    if tracker.run_name is None:
        own = [text for text in overrides() if not text.startswith(("resume=", "skip_finished="))]
        tracker.run_name = (",".join(own) or f"{cfg.name}-{choices.strategy}-seed={cfg.seed}")[:128]  # W&B's limit
    if tracker.group is None and hydra_cfg.mode == RunMode.MULTIRUN:
        tracker.group = "-".join(Path(hydra_cfg.sweep.dir).parts[-3:])[:128]
    if tracker.group is None:  # an agent of W&B starts each run of its sweep as a single job
        tracker.group = os.environ.get("WANDB_SWEEP_ID") or None
    tags = (choices.get(group) for group in TAGGED)  # None for a node given without a choice
    tracker.tags = [*tracker.tags, *(str(choice) for choice in tags if choice is not None)]
    return cfg


def overrides(composed: Any = None) -> list[str]:
    """The overrides of a job as they were typed: of this one, or of the Hydra configuration ``composed``."""
    task = (HydraConfig.get() if composed is None else composed).overrides.task
    texts: Any = OmegaConf.to_container(task, resolve=False)  # iterating over a ListConfig would resolve references
    return texts


def with_config_folder(arguments: Sequence[str]) -> list[str]:
    """The command line with ``-cd <folder>`` as one argument, ``--config-dir=<absolute path>``, at its beginning."""
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument in CONFIG_FOLDER:
            next(waiting, None)
        elif argument.partition("=")[0] not in CONFIG_FOLDER:
            rest.append(argument)
    folder = config_folder(arguments)
    return rest if folder is None else [f"--config-dir={folder}", *rest]


def flags_first(arguments: Sequence[str]) -> list[str]:
    """The command line with the usual flags before the overrides: argparse stops at a flag between two of these."""
    flags: list[str] = []
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        if argument in VALUED:
            flags += [argument, *([value] if (value := next(waiting, None)) is not None else [])]
        else:
            (flags if argument.partition("=")[0] in (*VALUED, *SWEEP) else rest).append(argument)
    return [*flags, *rest]


def config_folder(arguments: Sequence[str]) -> Path | None:
    """The folder of configurations that ``-cd`` or ``--config-dir`` names in a command line, absolute."""
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=False):
        flag, equals, value = argument.partition("=")
        if flag in CONFIG_FOLDER:
            return Path(value if equals else following).absolute()
    return None


def command_line() -> list[str]:
    """The arguments that start this job again: the folder of configurations, and the overrides as they were typed."""
    return [*config_flags(HydraConfig.get()), *overrides()]


def config_flags(hydra: Any) -> list[str]:
    """The flag that names the folder of configurations again; none where the command line had none."""
    sources = hydra.runtime.config_sources
    return [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]


def expand_resume(arguments: Sequence[str]) -> list[str]:
    """Replace ``resume=<run or checkpoint>`` in the command line by the overrides that started the run.

    The other arguments come after them and take precedence; the run's own folder is used. In a sweep, and if there is
    no such run, the arguments are returned unchanged: later checks name the mistake.
    """
    if "resume" not in map(key_of, arguments) or {"-m", "--multirun"} & {*arguments}:
        return list(arguments)
    arguments = with_config_folder(arguments)
    values = {key_of(argument): argument.partition("=")[2].strip("'\"") for argument in arguments}
    # resume=auto without a folder is resolved once the configuration is composed (newest_run).
    named = values.get("hydra.run.dir") if values["resume"] == "auto" else values["resume"]
    if named is None or (folder := run_folder(Path(named))) is None:
        return list(arguments)
    index = next(i for i, argument in enumerate(arguments) if key_of(argument) == "resume")
    added = [override for override in _stored_overrides(folder) if key_of(override) not in values]
    added.append("resume=auto" if values["resume"] == "auto" else f"resume={quoted(Path(named))}")
    if "hydra.run.dir" not in values:
        added.append(f"hydra.run.dir={quoted(folder)}")
    return with_config_folder([*arguments[:index], *added, *(a for a in arguments[index:] if key_of(a) != "resume")])


def config_to_record(cfg: DictConfig, found: Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration that a run records, without secrets; ``found`` is the checkpoint that it resumes.

    A ``fast_dev_run`` does not use W&B, and a resumed run keeps its W&B group.
    """
    if cfg.trainer.fast_dev_run:
        cfg.tracker.mode = "disabled"
    if found is not None and cfg.tracker.group is None:
        cfg.tracker.group = found["config"]["tracker"]["group"]  # one job of a sweep may be resumed by itself
    return redacted(cfg)


def save_config(folder: Path, config: Mapping[str, Any], overrides: Sequence[str] | None) -> None:
    """On rank 0, write config.yaml, with the overrides (for ``expand_resume``) in its first line."""
    if rank():
        return
    text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
    head = "" if overrides is None else f"{OVERRIDES}{json.dumps(without(overrides, ('resume',)))}\n"
    write_atomic(folder / "config.yaml", head + text)


def _stored_overrides(folder: Path) -> list[str]:
    stored = read_overrides(folder)
    if stored is not None:
        return stored
    file = folder / ".hydra" / "overrides.yaml"  # Hydra's: the run was stopped before it wrote config.yaml
    return without(read_yaml(file) if file.is_file() else [], ("resume",))


def key_of(override: str) -> str:
    """The key of an override, or the flag of an argument such as ``--config-dir=…``."""
    return override.lstrip("+~").partition("=")[0]


def quoted(path: Path | str) -> str:
    """A path, quoted as the value of an override."""
    return "'" + str(path).replace("'", "\\'") + "'"


def without(overrides: Iterable[str], keys: Sequence[str]) -> list[str]:
    """The overrides without those of ``keys`` and of keys below them."""
    return [override for override in overrides if not is_within(key_of(override), keys)]


def is_within(key: str, keys: Sequence[str]) -> bool:
    """Whether a dotted key is one of ``keys`` or below one of them."""
    return any(key == name or key.startswith(f"{name}.") for name in keys)
