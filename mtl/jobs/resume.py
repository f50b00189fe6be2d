"""Resuming a run: its folder, its checkpoint, and the settings that may change.

No function imports torch before a checkpoint is read.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mtl.config.redact import redacted
from mtl.config.schema import Config, completed, keys_that_are
from mtl.errors import ConfigError
from mtl.jobs.overrides import is_within, quoted, without
from mtl.runs.files import read_overrides, read_status, read_yaml, run_folder
from mtl.runs.record import truncate_to_step

log = logging.getLogger(__name__)


CHANGEABLE = keys_that_are("changeable")  # settings that may change on resume
LENGTH = keys_that_are("length")  # those that make a finished run go on


def newest_run(root: Path, overrides: Sequence[str]) -> Path | None:
    """The latest run folder ``<date>/<time>`` below ``root`` with the same overrides, but for those that may change."""
    wanted = sorted(without(overrides, CHANGEABLE))
    for file in sorted(root.glob("*/*/config.yaml"), reverse=True):
        stored = read_overrides(file.parent)
        if stored is not None and sorted(without(stored, (*CHANGEABLE, "--config-dir"))) == wanted:
            return file.parent
    return None


def newest_sweep(root: Path, overrides: Sequence[str]) -> Path | None:
    """The latest sweep folder ``<date>/<time>`` below ``root`` with the same overrides, as in newest_run."""
    wanted = sorted(without(overrides, CHANGEABLE))
    for file in sorted(root.glob("*/*/multirun.yaml"), reverse=True):
        if not file.stat().st_size:  # the process was stopped while Hydra wrote the file
            continue
        stored = read_yaml(file)["hydra"]["overrides"]["task"]
        if sorted(without(stored, CHANGEABLE)) == wanted:
            return file.parent
    return None


def find_checkpoint(cfg: DictConfig, folder: Path) -> dict[str, Any] | None:
    """The content of the checkpoint that a run in ``folder`` resumes from; None if it starts from the beginning.

    ConfigError if the folder holds a run that is not to be resumed, if the given checkpoint is missing or broken (an
    explicit path never falls back to another checkpoint), or if the run had another configuration.
    """
    if cfg.resume is None and not cfg.skip_finished:
        if (folder / "metrics.jsonl").exists() or (folder / "checkpoints").exists():
            raise ConfigError(
                f"{folder} already holds a run: resume=auto resumes it, skip_finished=true does so in a sweep; or "
                "choose another folder with hydra.run.dir or hydra.sweep.dir."
            )
        return None
    try:
        content = _load_latest(folder) if cfg.resume in (None, "auto") else _load_given(Path(cfg.resume), folder)
    except ValueError as error:
        raise ConfigError(f"resume={cfg.resume}: {error}") from error
    file = folder / "config.yaml"
    if content is not None:
        check_same_config(content["config"], cfg)
    elif file.is_file():
        check_same_config(read_yaml(file), cfg)
    return content


def _load_latest(folder: Path) -> dict[str, Any] | None:
    from mtl.runs import checkpoint

    found = checkpoint.latest_valid(folder)
    log.info("%s", f"resuming from {found[0]}" if found else f"no checkpoint in {folder}: starting from the beginning")
    return found and found[1]


def _load_given(path: Path, folder: Path) -> dict[str, Any] | None:
    from mtl.runs import checkpoint

    home = run_folder(path)
    if home is not None and home.resolve() != folder.resolve():
        raise ValueError(f"this run is resumed in its own folder, not in {folder}: leave hydra.run.dir out.")
    if home is not None and path.is_dir() and not any((path / checkpoint.FOLDER).glob("*.pt")):
        log.info("%s was stopped before its first checkpoint: starting from the beginning", path)
        return None
    try:
        return checkpoint.load(path)
    except ValueError as error:
        hint = f" resume=auto hydra.run.dir={quoted(home)} takes the newest valid one." if home is not None else ""
        raise ValueError(f"{error}{hint}") from error


def restore(state: Any, content: dict[str, Any] | None, folder: Path) -> None:
    """Load a checkpoint's ``content`` into a TrainState, and truncate the record in ``folder`` to its step."""
    from mtl.distributed.collectives import barrier, broadcast_object, get_rank
    from mtl.runs import checkpoint

    folder.mkdir(parents=True, exist_ok=True)
    if content is not None:
        try:
            state.load_state_dict(content)
        except ValueError as error:
            raise ConfigError(f"resume: {error}") from error
    barrier()  # other ranks may still be reading the files that are changed next
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
        state.best, state.best_step, state.best_metrics, state.waited = None, 0, {}, 0


def wandb_id(cfg: DictConfig, content: Mapping[str, Any] | None) -> str | None:
    """The id of the W&B run to resume: the checkpoint's, unless the checkpoint lies outside of a run folder."""
    elsewhere = cfg.resume not in (None, "auto") and run_folder(Path(cfg.resume)) is None
    return None if content is None or elsewhere else content["wandb_id"]


def check_same_config(stored: Mapping[str, Any], cfg: DictConfig) -> None:
    """ConfigError with the settings that differ from the run's ``stored`` configuration and may not change."""
    stored, now = completed(stored), completed(redacted(cfg))
    places = changed_places(stored, now)
    changes = [
        text for key, text in _differences(stored, now).items() if not is_within(key, CHANGEABLE) and key not in places
    ]
    if changes:
        raise ConfigError(
            f"The run was started with another configuration: {'; '.join(changes)}. A resumed run may change "
            f"{', '.join(CHANGEABLE)}, and where the data are; anything else makes a new run."
        )


def check_same_data(content: Mapping[str, Any] | None, now: Mapping[str, Any]) -> None:
    """ConfigError with every difference between the data of a checkpoint's ``content`` and those of ``now``."""
    from mtl.data.metadata import meaning_changes, split_changes

    if content is None:
        return
    if changes := meaning_changes(content["data"], now) + split_changes(content["data"], now):
        raise ConfigError(
            f"The run was started with other data: {'; '.join(changes)}. A resumed run needs the same data, in any "
            "place; other data make a new run."
        )


def is_finished(cfg: DictConfig, folder: Path) -> bool:
    """Whether ``folder`` holds this run, finished. ConfigError if it holds a run of another configuration."""
    status, file = read_status(folder), folder / "config.yaml"
    if not status or not file.is_file():
        return False
    stored = read_yaml(file)
    check_same_config(stored, cfg)
    longer = any(is_within(key, LENGTH) for key in _differences(completed(stored), completed(redacted(cfg))))
    return status["status"] == "finished" and not longer


def changed_places(stored: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the data set that say where its files are and differ, with their values of ``now``.

    Where the data are is no part of what a run is: the data themselves are compared with the checkpoint's.
    """
    old, new = _flat(stored), _flat(now)
    return {
        key: value
        for key, value in new.items()
        if key.startswith("data.") and value != old.get(key) and _are_paths(old.get(key), value)
    }


def _are_paths(*values: Any) -> bool:
    """Whether the values are text, or lists of it, and one of them is a path, by its look or because it is there."""
    texts = [text for value in values if value is not None for text in (value if isinstance(value, list) else [value])]
    return all(isinstance(t, str) for t in texts) and any(os.sep in t or Path(t).exists() for t in texts)


def _differences(stored: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Every key whose values differ, with a sentence that has both. A missing key has its default."""
    old_values, new_values = _flat(stored), _flat(new)
    changes = {}
    for key in dict.fromkeys([*old_values, *new_values]):
        was = old_values[key] if key in old_values else _default(new, key)
        now = new_values[key] if key in new_values else _default(new, key)
        if was != now:
            changes[key] = f"{key} was {was} and is {now}"
    return changes


def _default(config: Mapping[str, Any], key: str) -> Any:
    """The default of a key that a configuration lacks, as one of an older version may; "nothing" if it has none.

    It is looked up in ``config``, the configuration of this run: code that only a checkpoint names is not imported.
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
        except Exception:  # no such argument, or no signature
            return "nothing"
        return "nothing" if default is inspect.Parameter.empty else default
    return schema.get(last, "nothing") if isinstance(schema, Mapping) else "nothing"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    if not value:
        return {prefix: "{}"} if prefix else {}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()}
