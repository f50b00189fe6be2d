"""Where a run goes on from: its folder, its command line, its checkpoint, and what may be different this time.

Nothing here imports torch before a checkpoint is read.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mtl.config import ConfigError
from mtl.launch import rank
from mtl.schema import Config
from mtl.secrecy import public
from mtl.tracking import cut_back, write_whole

log = logging.getLogger(__name__)

# What a run may be gone on with otherwise than it was begun: its length, where and how it runs and is recorded.
CHANGEABLE = (
    "name", "device", "resume", "skip_finished", "tracker", "conflict", "data.on_error", "trainer.max_steps",
    "trainer.max_epochs", "trainer.patience", "trainer.log_every", "trainer.checkpoint_every", "trainer.keep",
    "trainer.num_workers", "trainer.keep_memory", "trainer.devices", "trainer.shard", "trainer.on_nan",
    "trainer.max_skips", "trainer.examples",
)  # fmt: skip
LENGTH = ("trainer.max_steps", "trainer.max_epochs", "trainer.patience")
OVERRIDES = "# overrides: "  # the first line of a run's config.yaml: how it was started


# -------------------------------------------------------------------------------------- the command line


def expand(arguments: Sequence[str]) -> list[str]:
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


def recorded(cfg: DictConfig, found: Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration that a run records: a trial has no W&B, what goes on has the group it had."""
    if cfg.trainer.fast_dev_run:
        cfg.tracker.mode = "disabled"
    if found is not None and cfg.tracker.group is None:
        cfg.tracker.group = found["config"]["tracker"]["group"]  # also where one job of a sweep goes on by itself
    return public(cfg)


def save_config(folder: Path, config: Mapping[str, Any], overrides: Sequence[str] | None) -> None:
    """Write config.yaml, and in its first line the overrides that ``expand`` reads; the first process of a run does."""
    if rank():
        return
    text = OmegaConf.to_yaml(OmegaConf.create(dict(config)))
    head = "" if overrides is None else f"{OVERRIDES}{json.dumps(_without_changing(overrides, ('resume',)))}\n"
    write_whole(folder / "config.yaml", head + text)


def _stored_overrides(folder: Path) -> list[str]:
    own = _own_overrides(folder / "config.yaml")
    if own is not None:
        return own
    file = folder / ".hydra" / "overrides.yaml"  # it was stopped before it had written its own
    return _without_changing(_plain(file) if file.is_file() else [], ("resume",))


def _own_overrides(file: Path) -> list[str] | None:
    if not file.is_file():
        return None
    with file.open() as lines:
        first = lines.readline()
    try:
        return json.loads(first.removeprefix(OVERRIDES)) if first.startswith(OVERRIDES) else None
    except json.JSONDecodeError:
        return None


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def quoted(path: Path) -> str:
    """A path as the value of an override."""
    return "'" + str(path).replace("'", "\\'") + "'"


def _without_changing(overrides: Iterable[str], keys: Sequence[str]) -> list[str]:
    return [override for override in overrides if not _within(_key(override), keys)]


def _within(key: str, keys: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in keys)


# -------------------------------------------------------------------------------------------- the folder


def run_folder(path: Path) -> Path | None:
    """The run folder that a ``resume`` names: itself, or the one whose checkpoint it is; None where there is none."""
    parents = path.absolute().parents
    folder = path if path.is_dir() else parents[1] if parents[0].name == "checkpoints" else None
    known = ("status.json", "config.yaml", "metrics.jsonl", ".hydra")
    return folder if folder is not None and any((folder / name).exists() for name in known) else None


def newest_run(root: Path, overrides: Sequence[str]) -> Path | None:
    """The latest run below ``root`` (``<date>/<time>``) that was started with the same overrides."""
    wanted = sorted(_without_changing(overrides, CHANGEABLE))
    for file in sorted(root.glob("*/*/config.yaml"), reverse=True):
        own = _own_overrides(file)
        if own is not None and sorted(_without_changing(own, CHANGEABLE)) == wanted:
            return file.parent
    return None


def newest_sweep(root: Path, overrides: Sequence[str]) -> Path | None:
    """The latest sweep below ``root`` (``<date>/<time>``) that was started with the same overrides."""
    wanted = sorted(_without_changing(overrides, CHANGEABLE))
    for file in sorted(root.glob("*/*/multirun.yaml"), reverse=True):
        if not file.stat().st_size:  # it was stopped while Hydra wrote it
            continue
        stored = _plain(file)["hydra"]["overrides"]["task"]
        if sorted(_without_changing(stored, CHANGEABLE)) == wanted:
            return file.parent
    return None


# ----------------------------------------------------------------------------------------- the checkpoint


def find(cfg: DictConfig, folder: Path) -> dict[str, Any] | None:
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
        check_same(content["config"], cfg)
    elif file.is_file():
        check_same(_plain(file), cfg)
    return content


def _newest(folder: Path) -> dict[str, Any] | None:
    from mtl import checkpoint

    found = checkpoint.newest(folder)
    log.info("%s", f"goes on from {found[0]}" if found else f"no checkpoint in {folder}: starts from the beginning")
    return found and found[1]


def _explicit(path: Path, folder: Path) -> dict[str, Any] | None:
    from mtl import checkpoint

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


def take_up(state: Any, content: dict[str, Any] | None, folder: Path) -> None:
    """Load a checkpoint's ``content`` into a TrainState, and cut what ``folder`` holds back to its step."""
    from mtl import checkpoint, distributed

    folder.mkdir(parents=True, exist_ok=True)
    if content is not None:
        try:
            state.load_state_dict(content)
        except ValueError as error:
            raise ConfigError(f"resume: {error}") from error
    distributed.wait_for_all()  # the others may still be reading what is cut here
    has_best = False
    if distributed.rank() == 0:
        try:
            cut_back(folder / "metrics.jsonl", state.step)
        except ValueError as error:
            raise ConfigError(f"resume: {error}") from error
        has_best = checkpoint.cut_back(folder, state.step, state.best_step)
    has_best = distributed.from_first(has_best)
    if state.best is not None and not has_best:
        log.warning(
            "the best model so far, of step %d, is not in %s: the next one is the best", state.best_step, folder
        )
        state.best, state.best_step, state.best_metrics = None, state.step, {}  # patience begins anew


def wandb_id(cfg: DictConfig, content: Mapping[str, Any] | None) -> str | None:
    """The W&B run to go on with: the checkpoint's, unless that was taken from the folder of another run."""
    elsewhere = cfg.resume not in (None, "auto") and run_folder(Path(cfg.resume)) is None
    return None if content is None or elsewhere else content["wandb_id"]


# ------------------------------------------------------------------------------------ the configuration


def check_same(stored: Mapping[str, Any], cfg: DictConfig) -> None:
    """ConfigError with the differences between a run's configuration and the one it is to go on with."""
    changes = [words for key, words in _differences(stored, public(cfg)).items() if not _within(key, CHANGEABLE)]
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
    stored = _plain(file)
    check_same(stored, cfg)
    longer = any(_within(key, LENGTH) for key in _differences(stored, public(cfg)))
    return json.loads(status.read_text())["status"] == "finished" and not longer


def _plain(file: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(file), resolve=False)  # secrets are references in it


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
