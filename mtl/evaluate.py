"""The command mtl-eval: rebuild a model from a checkpoint alone and measure it again."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def evaluate_checkpoint(path: Path, split: str, device: str | None = None) -> dict[str, float]:
    """The metrics of a checkpoint on a split of the data it was trained on.

    Configuration, parameters and buffers all come from the file; on the same machine the numbers are those of the
    training run, to the last bit. ``device`` replaces the one of the configuration. Raises ValueError.
    """
    from omegaconf import OmegaConf

    from mtl import checkpoint
    from mtl.config import build_parts
    from mtl.environment import seed_everything
    from mtl.loop import evaluate, split_batches
    from mtl.model import loss_modules

    content = checkpoint.load(path)
    cfg = OmegaConf.create(content["config"])
    cfg.device = device or cfg.device
    seed_everything(cfg.seed, cfg.trainer.deterministic)
    # The weights come from the checkpoint: a pretrained backbone need not be fetched first.
    if "pretrained" in cfg.backbone:
        cfg.backbone.pretrained = False
    parts = build_parts(cfg)
    parts.model.load_state_dict(content["ema"] or content["model"])
    loss_modules(parts.tasks).load_state_dict(content["losses"])
    return evaluate(parts.model, parts.tasks, split_batches(parts.data, split, cfg, parts.tasks), parts.device)


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
