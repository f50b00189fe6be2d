"""The command mtl-eval: rebuild a model from a checkpoint alone and measure it again."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

# What an override may change: how the model is measured, and where and how the data are read, which the checkpoint's
# description then checks. `preference` as well, of a model with members.
ACCEPTED = ("data", "metrics", "trainer.num_workers", "device")


def evaluate_checkpoint(
    path: Path, split: str, device: str | None = None, overrides: Sequence[str] = ()
) -> dict[str, float]:
    """The metrics of a checkpoint on a split of the data it was trained on.

    Configuration, parameters and buffers all come from the file; on the same machine the numbers equal those of the
    training run to the last bit. The data are read with the checkpoint's own meaning: its classes, statistics and
    normalisation. Samples that were in another split are a warning. ``device`` replaces the device of the
    configuration, and ``overrides`` (``data.root=…``) the keys of ACCEPTED; ``preference=[0.3,0.7]``, by order or by
    name, is the point of the front of a model with members (strategy=pareto_manifold), by default that of equal shares.

    ValueError if the file is no checkpoint, names code that is not trusted, or if the data mean something else.
    """
    from mtl.runs import checkpoint

    path = find_checkpoint(path)
    return _evaluate(path, checkpoint.load(path), split, [*overrides, *([f"device={device}"] if device else [])])


def find_checkpoint(path: Path, which: str = "best") -> Path:
    """The file to measure: ``path`` itself, or the best or last checkpoint of a run folder.

    Without a best one it is the last one, with a warning. ValueError if there is none.
    """
    from mtl.runs.checkpoint import FOLDER

    if not path.is_dir():
        return path
    file = path / FOLDER / f"{which}.pt"
    if which == "best" and not file.is_file() and (last := file.with_name("last.pt")).is_file():
        log.warning("%s has no best.pt: last.pt is measured.", file.parent)
        return last
    return file


def describe_checkpoint(path: Path, content: Mapping[str, Any]) -> str:
    """A line that says which weights these are: the file, the step, and whether they are the best or averaged ones."""
    trainer, step, best = content["config"]["trainer"], content["step"], content["best"]
    if best is None:
        what = f"{trainer['monitor']} has had no value yet"
    elif content["best_step"] == step:
        what = f"the best so far by {trainer['monitor']} = {best:.6g} on val"
    else:
        what = f"not the best: that is step {content['best_step']} by {trainer['monitor']} = {best:.6g} on val"
    averaged = "" if content["ema"] is None else f"; averaged weights, trainer.ema={trainer['ema']}"
    return f"{path}: step {step}, {what}{averaged}"


def _evaluate(path: Path, content: Mapping[str, Any], split: str, overrides: Sequence[str]) -> dict[str, float]:
    from omegaconf import OmegaConf

    from mtl.config.architecture import without_weights
    from mtl.config.build import build_parts
    from mtl.config.preference import chosen_shares, prefer
    from mtl.config.schema import completed
    from mtl.data.metadata import meaning_changes, split_changes
    from mtl.jobs.overrides import config_folder
    from mtl.runs.files import read_overrides, run_folder
    from mtl.runs.targets import check_targets, find_own_code
    from mtl.system.environment import seed_everything
    from mtl.tasks import loss_modules
    from mtl.training.evaluation import evaluate
    from mtl.training.loaders import eval_batches

    folder = run_folder(path)
    find_own_code(config_folder((folder and read_overrides(folder)) or []))
    check_targets(path, content["config"])
    cfg = OmegaConf.create(completed(content["config"]))
    _take_moved_data(cfg, path)
    shares = chosen_shares(cfg, _override(cfg, overrides))
    seed_everything(cfg.seed, cfg.trainer.deterministic)
    parts = build_parts(without_weights(cfg), content["data"])
    if changes := meaning_changes(content["data"], parts.description):
        raise ValueError(f"the data are not those that {path} was trained on: {'; '.join(changes)}.")
    for change in split_changes(content["data"], parts.description, [split]):
        log.warning("THE DATA DIFFER from those that the model was trained on: %s.", change)
    parts.model.load_state_dict(content["ema"] or content["model"])
    prefer(parts.model, shares)
    loss_modules(parts.tasks).load_state_dict(content["losses"])
    return evaluate(parts.engine, eval_batches(parts.data, split, cfg, parts.tasks), parts.device)


def _take_moved_data(cfg: Any, path: Path) -> None:
    """Look for the data where the run's config.yaml says: a run that was resumed elsewhere has older checkpoints."""
    from omegaconf import OmegaConf

    from mtl.jobs.resume import changed_places
    from mtl.runs.files import read_yaml, run_folder

    folder = run_folder(path)
    if folder is not None and (folder / "config.yaml").is_file():
        stored: Any = OmegaConf.to_container(cfg, resolve=False)
        for key, value in changed_places(stored, read_yaml(folder / "config.yaml")).items():
            OmegaConf.update(cfg, key, value, force_add=True)


def _override(cfg: Any, overrides: Sequence[str]) -> Any:
    """Apply overrides as Hydra reads them, and return the preference among them; None without one.

    ValueError for an override that could change what the model is.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException
    from omegaconf import OmegaConf

    from mtl.jobs.overrides import is_within

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise ValueError(f"{error.override} is no override, as data.root=FOLDER is.") from error
    preference = None
    for override in parsed:
        key = override.key_or_group
        if key == "preference" and not (override.is_delete() or override.is_sweep_override()):
            preference = override.value()
        elif (
            not is_within(key, ACCEPTED)
            or key in ("data", "data._target_")
            or override.is_delete()
            or override.is_sweep_override()
        ):
            raise ValueError(
                f"{override.input_line} cannot be changed in a trained model; accepted are data.<argument>=…, as "
                f"data.root=FOLDER, and {', '.join(ACCEPTED[1:])} and preference."
            )
        else:
            OmegaConf.update(cfg, key, override.value(), force_add=True)
    return preference


def main() -> None:
    """Print what is measured, a table, and the metrics as one JSON object on the last line."""
    parser = argparse.ArgumentParser("mtl-eval", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a run folder for its best one")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="data.root=FOLDER: data.*, metrics.*, device, preference"
    )
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", dest="which", help="of a run folder")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--device", help="instead of the device in the configuration: cpu, cuda, cuda:1, xpu, mps")
    arguments = parser.parse_intermixed_args()
    if not arguments.checkpoint.exists():  # answered without torch
        from mtl.errors import closest_path

        place = arguments.checkpoint
        where = "a run's folder is outputs/<name>/<date>/<time>"
        sys.exit(f"mtl-eval: There is no checkpoint {place}{closest_path(place)}; {where}.")
    from mtl.runs import checkpoint
    from mtl.runs.terminal import task_table

    logging.basicConfig(format="mtl-eval: %(message)s")
    try:
        path = find_checkpoint(arguments.checkpoint, arguments.which)
        content = checkpoint.load(path)
        device = [f"device={arguments.device}"] if arguments.device else []
        print(describe_checkpoint(path, content))
        metrics = _evaluate(path, content, arguments.split, [*arguments.overrides, *device])
    except ValueError as error:
        sys.exit(f"mtl-eval: {error}")
    at = [own for own in arguments.overrides if own.startswith("preference=")]
    print(task_table(" ".join([f"{path.name}: {arguments.split}", *at]), metrics))
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()
