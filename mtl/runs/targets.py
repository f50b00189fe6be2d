"""The code that a configuration may name: where Python finds it, and what a checkpoint by itself may name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mtl.runs.files import read_yaml, run_folder

TRUSTED_PACKAGES = ("mtl", "torch", "timm", "torchmetrics")  # a checkpoint may name their classes …
TRUSTED_FUNCTIONS = ("torch.tensor", "torch.ones", "torch.zeros", "torch.full")  # … and these, for class weights


def find_own_code(folder: Path | None = None) -> None:
    """Let Python import modules of the current folder, and of ``folder``, the one that ``-cd`` names.

    They come last, so that they hide no installed package.
    """
    for place in (Path.cwd(), folder):
        if place is not None and str(place) not in sys.path:
            sys.path.append(str(place))


def check_targets(path: Path, config: dict[str, Any]) -> None:
    """ValueError if the configuration in the checkpoint ``path`` names code that is not trusted.

    Call it before anything is built from a checkpoint: a ``_target_`` may be any function, and so run any code.
    Classes of TRUSTED_PACKAGES are allowed; others only if config.yaml in the run's folder names them as well.
    """
    from hydra.utils import get_object

    folder = run_folder(path)
    file = None if folder is None else folder / "config.yaml"
    known = _targets(read_yaml(file)) if file is not None and file.is_file() else set()
    for target in sorted(_targets(config) - known):
        if target in TRUSTED_FUNCTIONS:
            continue
        if target.split(".")[0] not in TRUSTED_PACKAGES or not isinstance(get_object(target), type):
            raise ValueError(
                f"{path} names {target}, and a checkpoint by itself may name classes of {', '.join(TRUSTED_PACKAGES)} "
                "only: put the run's config.yaml into its folder if you trust it."
            )


def _targets(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {str(node["_target_"])} if "_target_" in node else set()
        return own.union(*map(_targets, node.values()))
    return set().union(*map(_targets, node)) if isinstance(node, list) else set()
