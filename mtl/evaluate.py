"""The command mtl-eval: rebuild a model from a checkpoint alone and measure it again."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

FREE = ("mtl", "torch", "timm", "torchmetrics")  # packages whose classes a checkpoint may name …
FACTORIES = (
    "torch.tensor",
    "torch.ones",
    "torch.zeros",
    "torch.full",
)  # … and functions, as a loss's class weights need


def evaluate_checkpoint(path: Path, split: str, device: str | None = None) -> dict[str, float]:
    """The metrics of a checkpoint on a split of the data it was trained on.

    Configuration, parameters and buffers all come from the file; on the same machine the numbers are those of the
    training run, to the last bit. ``device`` replaces the one of the configuration. Raises ValueError.
    """
    from omegaconf import OmegaConf

    from mtl.config.build import build_parts
    from mtl.runs import checkpoint
    from mtl.system.environment import seed_everything
    from mtl.tasks import loss_modules
    from mtl.training.evaluation import evaluate
    from mtl.training.loaders import eval_batches

    content = checkpoint.load(path)
    _check_code(path, content["config"])
    cfg = OmegaConf.create(content["config"])
    cfg.device = device or cfg.device
    seed_everything(cfg.seed, cfg.trainer.deterministic)
    # The weights come from the checkpoint: a pretrained backbone need not be fetched first.
    if "pretrained" in cfg.backbone:
        cfg.backbone.pretrained = False
    parts = build_parts(cfg)
    parts.model.load_state_dict(content["ema"] or content["model"])
    loss_modules(parts.tasks).load_state_dict(content["losses"])
    return evaluate(parts.model, parts.tasks, eval_batches(parts.data, split, cfg, parts.tasks), parts.device)


def _check_code(path: Path, config: dict[str, Any]) -> None:
    """ValueError if a checkpoint by itself names code that may do anything: only a configuration file may.

    Classes of mtl, torch, timm and torchmetrics are free; others must stand in config.yaml in the run's folder.
    """
    from hydra.utils import get_object
    from omegaconf import OmegaConf

    from mtl.runs.files import run_folder

    folder = run_folder(path)
    file = None if folder is None else folder / "config.yaml"
    known = _targets(OmegaConf.to_container(OmegaConf.load(file), resolve=False)) if file and file.is_file() else set()
    for target in sorted(_targets(config) - known):
        if target in FACTORIES:
            continue
        if target.split(".")[0] not in FREE or not isinstance(get_object(target), type):
            raise ValueError(
                f"{path} names {target}, and a checkpoint by itself may name classes of {', '.join(FREE)} only: put "
                "the run's config.yaml into its folder if you trust it."
            )


def _targets(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {str(node["_target_"])} if "_target_" in node else set()
        return own.union(*map(_targets, node.values()))
    return set().union(*map(_targets, node)) if isinstance(node, list) else set()


def main() -> None:
    """Print a table, and the metrics as one JSON object on the last line."""
    parser = argparse.ArgumentParser("mtl-eval", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a run folder for its last one")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--device", help="instead of the device in the configuration: cpu, cuda, cuda:1, mps")
    arguments = parser.parse_args()
    try:
        metrics = evaluate_checkpoint(arguments.checkpoint, arguments.split, arguments.device)
    except ValueError as error:
        sys.exit(f"mtl-eval: {error}")
    from mtl.report import task_table

    print(task_table(f"{arguments.checkpoint.name}: {arguments.split}", metrics))
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()
