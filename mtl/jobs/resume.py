"""Where a run resumes: its folder, its checkpoint, and which settings may change.

Nothing here imports torch before a checkpoint is read.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mtl.config.redact import redacted
from mtl.config.schema import Config, keys_that_are
from mtl.errors import ConfigError
from mtl.jobs.overrides import is_within, quoted, read_yaml, recorded_overrides, without
from mtl.runs.files import run_folder
from mtl.runs.record import truncate_to_step

log = logging.getLogger(__name__)


CHANGEABLE = keys_that_are("changeable")  # settings that may change on resume
LENGTH = keys_that_are("length")  # those that make a finished run go on


def newest_run(root: Path, overrides: Sequence[str]) -> Path | None:
    """The latest run below ``root`` (``<date>/<time>``) that was started with the same overrides."""
    wanted = sorted(without(overrides, CHANGEABLE))
    for file in sorted(root.glob("*/*/config.yaml"), reverse=True):
        own = recorded_overrides(file)
        if own is not None and sorted(without(own, CHANGEABLE)) == wanted:
            return file.parent
    return None


def newest_sweep(root: Path, overrides: Sequence[str]) -> Path | None:
    """The latest sweep below ``root`` (``<date>/<time>``) that was started with the same overrides."""
    wanted = sorted(without(overrides, CHANGEABLE))
    for file in sorted(root.glob("*/*/multirun.yaml"), reverse=True):
        if not file.stat().st_size:  # it was stopped while Hydra wrote it
            continue
        stored = read_yaml(file)["hydra"]["overrides"]["task"]
        if sorted(without(stored, CHANGEABLE)) == wanted:
            return file.parent
    return None


def find_checkpoint(cfg: DictConfig, folder: Path) -> dict[str, Any] | None:
    """The checkpoint that a run in ``folder`` goes on from; None: it starts from the beginning.

    ConfigError where the folder holds a run that the configuration does not mean to go on with, where the checkpoint
    named is not there or broken (there is no falling back from an explicit path), or where the run was of another
    configuration.
    """
    if cfg.resume is None and not cfg.skip_finished:
        if (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists():
            raise ConfigError(
                f"{folder} already holds a run: resume=auto goes on with it, skip_finished=true does so in a sweep; or "
                "choose another folder with hydra.run.dir or hydra.sweep.dir."
            )
        return None
    try:
        content = _newest(folder) if cfg.resume in (None, "auto") else _explicit(Path(cfg.resume), folder)
    except ValueError as error:
        raise ConfigError(f"resume={cfg.resume}: {error}") from error
    file = folder / "config.yaml"
    if content is not None:
        check_same_config(content["config"], cfg)
    elif file.is_file():
        check_same_config(read_yaml(file), cfg)
    return content


def _newest(folder: Path) -> dict[str, Any] | None:
    from mtl.runs import checkpoint

    found = checkpoint.latest_valid(folder)
    log.info("%s", f"goes on from {found[0]}" if found else f"no checkpoint in {folder}: starts from the beginning")
    return found and found[1]


def _explicit(path: Path, folder: Path) -> dict[str, Any] | None:
    from mtl.runs import checkpoint

    home = run_folder(path)
    if home is not None and home.resolve() != folder.resolve():
        raise ValueError(f"this run goes on in its own folder, not in {folder}: leave hydra.run.dir out.")
    if home is not None and path.is_dir() and not any((path / checkpoint.FOLDER).glob("*.pt")):
        log.info("%s was stopped before its first checkpoint: starts from the beginning", path)
        return None
    try:
        return checkpoint.load(path)
    except ValueError as error:
        other = f" resume=auto hydra.run.dir={quoted(home)} takes the newest that is valid." if home is not None else ""
        raise ValueError(f"{error}{other}") from error


def restore(state: Any, content: dict[str, Any] | None, folder: Path) -> None:
    """Load a checkpoint's ``content`` into a TrainState, and cut what ``folder`` holds back to its step."""
    from mtl.distributed.collectives import barrier, broadcast_object, get_rank
    from mtl.runs import checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    if content is not None:
        try:
            state.load_state_dict(content)
        except ValueError as error:
            raise ConfigError(f"resume: {error}") from error
    barrier()  # the others may still be reading what is cut here
    has_best = False
    if get_rank() == 0:
        try:
            truncate_to_step(folder / "metrics.jsonl", state.step)
        except ValueError as error:
            raise ConfigError(f"resume: {error}") from error
        has_best = checkpoint.restore_folder(folder, state.step, state.best_step)
    has_best = broadcast_object(has_best)
    if state.best is not None and not has_best:
        log.warning(
            "the best model so far, of step %d, is not in %s: the next one is the best", state.best_step, folder
        )
        state.best, state.best_step, state.best_metrics = None, state.step, {}  # patience begins anew


def wandb_id(cfg: DictConfig, content: Mapping[str, Any] | None) -> str | None:
    """The W&B run to go on with: the checkpoint's, unless that was taken from the folder of another run."""
    elsewhere = cfg.resume not in (None, "auto") and run_folder(Path(cfg.resume)) is None
    return None if content is None or elsewhere else content["wandb_id"]


def check_same_config(stored: Mapping[str, Any], cfg: DictConfig) -> None:
    """ConfigError with the differences between a run's configuration and the one it is to go on with."""
    changes = [words for key, words in _differences(stored, redacted(cfg)).items() if not is_within(key, CHANGEABLE)]
    if changes:
        raise ConfigError(
            f"The run was started with another configuration: {'; '.join(changes)}. Going on, {', '.join(CHANGEABLE)} "
            "may be changed; anything else makes a new run."
        )


def is_finished(cfg: DictConfig, folder: Path) -> bool:
    """Whether ``folder`` holds this very run, finished. ConfigError if it holds one of another configuration."""
    status, file = folder / "status.json", folder / "config.yaml"
    if not status.is_file() or not file.is_file():
        return False
    stored = read_yaml(file)
    check_same_config(stored, cfg)
    longer = any(is_within(key, LENGTH) for key in _differences(stored, redacted(cfg)))
    return json.loads(status.read_text())["status"] == "finished" and not longer


def _differences(stored: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Every key whose value is another one, with both in words. A key that is left out has its default."""
    a, b = _flat(stored), _flat(new)
    changes = {}
    for key in dict.fromkeys([*a, *b]):
        was = a[key] if key in a else _default(new, key)
        now = b[key] if key in b else _default(new, key)
        if was != now:
            changes[key] = f"{key} was {was} and is {now}"
    return changes


def _default(config: Mapping[str, Any], key: str) -> Any:
    """What a key that is left out, as an older version may have left it, comes to; else the word nothing.

    ``config`` is the one at hand: what a checkpoint names is not even imported.
    """
    from hydra.utils import get_object

    node: Any = config
    schema: Any = asdict(Config())
    *path, last = key.split(".")
    for part in path:
        node, schema = (level.get(part) if isinstance(level, Mapping) else None for level in (node, schema))
    if isinstance(node, Mapping) and "_target_" in node:
        try:
            default = inspect.signature(get_object(node["_target_"])).parameters[last].default
        except Exception:  # it has no such argument, or cannot be looked at
            return "nothing"
        return "nothing" if default is inspect.Parameter.empty else default
    return schema.get(last, "nothing") if isinstance(schema, Mapping) else "nothing"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    if not value:
        return {prefix: "{}"} if prefix else {}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}
