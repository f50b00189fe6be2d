"""The command mtl-eval: rebuild a model from a checkpoint alone and measure it again."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def evaluate_checkpoint(path: Path, split: str, device: str | None = None) -> dict[str, float]:
    """The metrics of a checkpoint on a split of the data it was trained on.

    Configuration, parameters and buffers all come from the file; on the same machine the numbers equal those of the
    training run to the last bit. ``device`` replaces the device of the configuration. ValueError if the file is no
    checkpoint, or names code that is not trusted.
    """
    from omegaconf import OmegaConf

    from mtl.config.build import build_parts
    from mtl.runs import checkpoint
    from mtl.runs.targets import check_targets
    from mtl.system.environment import seed_everything
    from mtl.tasks import loss_modules
    from mtl.training.evaluation import evaluate
    from mtl.training.loaders import eval_batches

    content = checkpoint.load(path)
    check_targets(path, content["config"])
    cfg = OmegaConf.create(content["config"])
    cfg.device = device or cfg.device
    seed_everything(cfg.seed, cfg.trainer.deterministic)
    # The weights come from the checkpoint: a pretrained backbone need not be downloaded.
    if "pretrained" in cfg.backbone:
        cfg.backbone.pretrained = False
    parts = build_parts(cfg)
    parts.model.load_state_dict(content["ema"] or content["model"])
    loss_modules(parts.tasks).load_state_dict(content["losses"])
    return evaluate(parts.engine, eval_batches(parts.data, split, cfg, parts.tasks), parts.device)


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
    from mtl.runs.terminal import task_table

    print(task_table(f"{arguments.checkpoint.name}: {arguments.split}", metrics))
    print(json.dumps(metrics))


if __name__ == "__main__":
    main()
