"""The command mtl-train. torch is imported when a run is built, so that help and mistakes are answered at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from mtl.config import CONF, check
from mtl.config.file_checks import check_files
from mtl.config.table_heads import take_targets
from mtl.distributed.ranks import has_several_ranks, process_group, rank
from mtl.jobs.job import command, run_job
from mtl.jobs.launch import check_devices, launch
from mtl.jobs.overrides import command_line, config_to_record, name_tracker_run, save_config
from mtl.jobs.resume import check_same_data, find_checkpoint, restore, wandb_id
from mtl.jobs.study import pruning
from mtl.runs import figures
from mtl.runs.terminal import final_report
from mtl.system.imports import without_garbage_collection


def train(
    cfg: DictConfig,
    folder: Path,
    stop: Callable[[], bool] = lambda: False,
    arguments: Sequence[str] | None = None,
) -> float | None:
    """Train the model that ``cfg`` describes, record the run in ``folder``, return the monitored metric's best value.

    Callable without Hydra's command line: ``train(mtl.config.load(["seed=1"]), Path("here"))``. With
    ``trainer.devices`` above 1 it starts that many processes, and each trains on a part of every batch. After each step
    ``stop`` is asked whether to save and end (mtl.system.signals). ``arguments``, those of the command line, are saved
    with the configuration. A mistake in the configuration is a ConfigError (a ValueError), before anything is trained.
    """
    check(cfg)
    check_files(cfg.data)
    check_devices(cfg.trainer.devices)
    data = take_targets(cfg)
    if cfg.trainer.devices > 1 and not has_several_ranks():
        del data  # each process reads its own
        return launch(train, cfg, folder, arguments)
    with process_group():
        return _train(cfg, folder, stop, arguments, data)


def _train(
    cfg: DictConfig, folder: Path, stop: Callable[[], bool], arguments: Sequence[str] | None, data: Any
) -> float | None:
    found = find_checkpoint(cfg, folder)
    with without_garbage_collection():
        from mtl.config.build import build
        from mtl.runs.tracker import make_tracker
        from mtl.system.memory import explained
        from mtl.training.loop import fit
        from mtl.training.size import multiply_adds
        from mtl.training.summary import run_summary

    parts, state = build(cfg, found and found["data"], data)
    check_same_data(found, parts.description)
    restore(state, found, folder)
    operations = multiply_adds(parts.engine, parts.example)
    config = config_to_record(cfg, found)
    save_config(folder, config, arguments)
    with make_tracker(folder, cfg.tracker, config, wandb_id(cfg, found)) as tracker, explained(state):
        test = fit(state, parts, cfg, tracker, stop, pruning())
        tracker.summarise(run_summary(state, parts.data, test, folder, operations))
        tracker.figures(state.step, lambda: _figures(folder))
    if rank() == 0:
        figures.draw_run(folder)
        print(final_report(folder))
    return state.best


def _figures(folder: Path) -> dict[str, Any]:
    from mtl.report.figures import of_one_run  # Plotly, which a run without W&B does not need

    return of_one_run(folder)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def _job(cfg: DictConfig) -> float | None:
    return run_job(lambda cfg, folder, stop: train(name_tracker_run(cfg), folder, stop, command_line()), cfg)


def main() -> None:
    """Compose the configuration from the command line, and run it as one job or as a sweep."""
    command(_job)


if __name__ == "__main__":
    main()
