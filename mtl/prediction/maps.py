"""Maps as files: the values for programs, and a picture beside them for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mtl.prediction.answers import Answer
from mtl.training.examples import colour_mapped, pixels

PICTURES = "pictures"


def save_map(folder: Path, place: str, task: str, answer: Answer, scores: Any, spread: Any = None) -> dict[str, str]:
    """Write one sample's map below ``folder``; returns the files' paths there, as the cells of a table.

    ``<task>/<place>.png`` has the classes of a segmentation as grey values, ``.npy`` any other map; ``pictures/`` has
    the same in colours. ``spread``: the scores' deviations between models, of a segmentation that of the winning class.
    """
    said = answer.say(scores)
    files = {task: _write(folder / task / place, answer, said)}
    if spread is not None:
        spread = np.take_along_axis(spread, said[None], 0)[0] if answer.kind == "segmentation" else spread
        files[f"{task}_spread"] = _save(folder / f"{task}_spread" / f"{place}.npy", np.asarray(spread))
    picture = _picture(answer.kind, said)
    if picture is not None:
        files[f"{task}_picture"] = _save(folder / PICTURES / task / f"{place}.png", picture)
    return {column: file.relative_to(folder).as_posix() for column, file in files.items()}


def _write(place: Path, answer: Answer, said: Any) -> Path:
    if answer.kind == "segmentation" and len(answer.names) <= 256:
        return _save(place.with_name(f"{place.name}.png"), said.astype(np.uint8))
    return _save(place.with_name(f"{place.name}.npy"), np.asarray(said))


def _save(file: Path, values: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".png":
        Image.fromarray(values).save(file)
    else:
        np.save(file, values)
    return file


def _picture(kind: str, said: Any) -> np.ndarray | None:
    """A map as colours ``[H, W, 3]``, as examples/ has them; depth from its own minimum to its own maximum."""
    if kind == "segmentation":
        return colour_mapped(torch.from_numpy(said % 20 / 19), "tab20")
    if kind == "depth" and said.ndim == 2:
        values = torch.from_numpy(said).float()
        return colour_mapped((values - values.min()) / (values.max() - values.min()).clamp_min(1e-6), "viridis")
    if kind == "normals":
        return pixels(torch.from_numpy(said) / 2 + 0.5)
    return pixels(torch.from_numpy(said)[None]) if kind == "mask" and said.ndim == 2 else None
