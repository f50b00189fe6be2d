"""Pictures of a trained model's predictions beside the targets, for data of images.

The kind of a target, ``data.kinds[target]``, says how the two are drawn:

- ``segmentation``: classes ``[H, W]`` and logits ``[C, H, W]``, a colour for each class;
- ``depth``: ``[1, H, W]``, both in colours from the least to the most of the target;
- ``normals``: ``[3, H, W]``, their axes as red, green and blue;
- ``mask``: numbers from 0 to 1 and logits, ``[1, H, W]``, in grey;
- ``class``: a class and logits ``[C]``, or numbers 0 and 1 and as many logits; as text;
- ``value``: numbers, as text.

Where there is no label the target is black.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl.data.loader import Batches
from mtl.distributed.collectives import get_rank
from mtl.model import MultiTaskModel
from mtl.runs.files import write_atomic
from mtl.tasks import Task, where_labelled
from mtl.training.evaluation import inference, predictions
from mtl.training.loaders import to_device

log = logging.getLogger(__name__)

FOLDER, FILE = "examples", "examples.json"

Pixels = NDArray[np.uint8]  # [H, W, 3]
Drawn = dict[str, "Pixels | str"]  # "target" and "prediction"


def write_examples(
    folder: Path, model: MultiTaskModel, tasks: Sequence[Task], data: Any, device: torch.device, count: int
) -> None:
    """Draw ``count`` samples, spread evenly over the test split, into ``examples/`` of a run's folder.

    ``examples.json`` lists them: ``[{"index", "split", "image", "tasks": {task: {"kind", "target", "prediction"}}}]``.
    The image is the name of a PNG, a target and a prediction are one or text. Data that do not say of what kind their
    targets are have none. This never fails: what goes wrong is logged.
    """
    kinds = getattr(data, "kinds", None)
    if not kinds or not count:
        return
    try:
        # Every process runs the model, which may be spread over them; one of them draws.
        predicted = list(_predict(model, tasks, data.test, kinds, device, count))
        if get_rank() == 0:
            _write(folder / FOLDER, predicted)
    except Exception as error:
        log.warning("No pictures of examples: %s: %s", type(error).__name__, str(error).split("\n")[0])


def show(kind: str, target: Tensor, prediction: Tensor, labelled: Tensor | None = None) -> Drawn:
    """One sample's target and prediction as pixels, or as text, by their kind; ``labelled``: where the target holds."""
    if kind in ("class", "value"):
        return _as_text(kind, target, prediction)
    target, prediction = target.float(), prediction.float()
    if kind == "segmentation":
        pictures = [_coloured(x / 19, "tab20") for x in (target % 20, prediction.argmax(0) % 20)]
    elif kind == "depth":
        known = target[0] if labelled is None else target[0][labelled[0]]
        low, span = known.min(), (known.max() - known.min()).clamp_min(1e-6)
        pictures = [_coloured((x[0] - low) / span, "viridis") for x in (target, prediction)]
    elif kind == "normals":
        pictures = [_pixels(torch.nn.functional.normalize(x, dim=0) / 2 + 0.5) for x in (target, prediction)]
    elif kind == "mask":
        pictures = [_pixels(x) for x in (target, prediction.sigmoid())]
    else:
        raise ValueError(f"kind={kind} must be one of segmentation, depth, normals, mask, class, value.")
    if labelled is not None:
        pictures[0][~(labelled if labelled.dim() == 2 else labelled[0]).numpy()] = 0
    return {"target": pictures[0], "prediction": pictures[1]}


def _as_text(kind: str, target: Tensor, prediction: Tensor) -> Drawn:
    if kind == "value":
        return {name: _words(x) for name, x in (("target", target), ("prediction", prediction))}
    # Logits of one class, or of attributes that are there or not.
    found = (prediction > 0).long() if target.is_floating_point() else prediction.argmax(0)
    return {"target": _words(target), "prediction": _words(found)}


def _words(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.flatten().tolist())


def _predict(
    model: MultiTaskModel,
    tasks: Sequence[Task],
    dataset: Any,
    kinds: Mapping[str, str],
    device: torch.device,
    count: int,
) -> Iterator[tuple[int, dict[str, Tensor], dict[str, tuple]]]:
    """Of each sample its index, its images (by task, where each has its own), and what ``show`` takes, by task."""
    with inference(model):
        for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist():
            for inputs, targets in Batches(dataset, [(0, [index])], 0, split="test", on_error="skip"):
                shown = {}
                for task, prediction in predictions(model, tasks, to_device(inputs, device), targets):
                    target = targets[task.name]
                    mask = where_labelled(task, target)
                    shown[task.name] = (
                        kinds[task.name], target[0], prediction[0].float().cpu(), None if mask is None else mask[0]
                    )  # fmt: skip
                images = inputs if isinstance(inputs, dict) else {"": inputs}
                yield index, {name: image[0] for name, image in images.items()}, shown


def _write(folder: Path, predicted: list[tuple[int, dict[str, Tensor], dict[str, tuple]]]) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # of a run that ended here before
    folder.mkdir()
    entries: list[dict[str, Any]] = []
    for index, images, shown in predicted:
        for own, image in images.items():
            number, tasks = len(entries), {}
            for task, what in shown.items():
                if own in ("", task):
                    drawn = {n: _save(folder, f"{number}_{task}_{n}", x) for n, x in show(*what).items()}
                    tasks[task] = {"kind": what[0], **drawn}
            if tasks:
                picture = _save(folder, f"{number}_image", _photograph(image))
                entries.append({"index": index, "split": "test", "image": picture, "tasks": tasks})
    write_atomic(folder / FILE, json.dumps(entries, indent=1) + "\n")


def _save(folder: Path, name: str, drawn: Pixels | str) -> str:
    if isinstance(drawn, str):
        return drawn
    from PIL import Image

    Image.fromarray(drawn).save(folder / f"{name}.png")
    return f"{name}.png"


def _photograph(image: Tensor) -> Pixels:
    """A normalised image ``[1 or 3, H, W]``, from its darkest to its brightest number."""
    if image.dim() != 3 or len(image) not in (1, 3):
        raise ValueError(f"an input of the shape {list(image.shape)} is no image [1 or 3, H, W]")
    image = image.float()
    return _pixels((image - image.min()) / (image.max() - image.min()).clamp_min(1e-6))


def _pixels(values: Tensor) -> Pixels:
    """``[1 or 3, H, W]`` from 0 to 1 as pixels."""
    clean = values.nan_to_num(0).clamp(0, 1).expand(3, -1, -1)
    return (clean * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _coloured(values: Tensor, colours: str) -> Pixels:
    """``[H, W]`` from 0 to 1 in the colours of a matplotlib map."""
    from matplotlib import colormaps

    return colormaps[colours](values.nan_to_num(0).clamp(0, 1).numpy(), bytes=True)[..., :3].copy()
