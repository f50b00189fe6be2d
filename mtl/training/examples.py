"""Pictures of a trained model's predictions beside their targets, for data sets of images.

``data.kinds[target]`` is the kind of a target, and decides how target and prediction are drawn:

- ``segmentation``: classes ``[H, W]`` and logits ``[C, H, W]``, a colour for each class;
- ``depth``: ``[1, H, W]``, in colours from the target's minimum to its maximum;
- ``normals``: ``[3, H, W]``, the axes as red, green and blue;
- ``mask``: values from 0 to 1 and logits, ``[1, H, W]``, in grey;
- ``class``: a class and logits ``[C]``, or values 0 and 1 and as many logits; as text, a wrong prediction marked so;
- ``value``: numbers, as text.

A target's pixels without a label are black, and a text without one is a dash. ``data.class_names[target]``, where there
are some, are the names of the classes, or of the attributes; ``data.scales[target]`` are the mean and the deviation by
which numbers were standardised, so that they are shown in their own units.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl.data.loader import Batches
from mtl.distributed.collectives import get_rank
from mtl.engine.engine import Engine
from mtl.errors import first_line
from mtl.runs.files import write_atomic
from mtl.tasks import where_labelled
from mtl.training.evaluation import inference, predictions
from mtl.training.loaders import to_device

log = logging.getLogger(__name__)

FOLDER, FILE = "examples", "examples.json"
NO_LABEL = "–"

Pixels = NDArray[np.uint8]  # [H, W, 3]
Drawn = dict[str, "Pixels | str"]  # "target" and "prediction"


def write_examples(folder: Path, engine: Engine, data: Any, device: torch.device, count: int) -> None:
    """Draw ``count`` samples, spread evenly over the test split, into ``examples/`` of a run's folder.

    ``examples.json`` lists them: ``[{"index", "split", "image", "tasks": {task: {"kind", "target", "prediction"}}}]``.
    The image is the name of a PNG file; a target and a prediction are one, or text. Nothing is drawn for data without
    ``kinds``. An error is logged and not raised: pictures must not fail a run that has been trained.
    """
    kinds = getattr(data, "kinds", None)
    if not kinds or not count:
        return
    try:
        # Every rank runs the model, which may be sharded over them; rank 0 draws.
        predicted = list(_predict(engine, data, device, count))
        if get_rank() == 0:
            _write(folder / FOLDER, predicted)
    except Exception as error:
        log.warning("No pictures of examples: %s: %s", type(error).__name__, first_line(error))


def draw(
    kind: str,
    target: Tensor,
    prediction: Tensor,
    labelled: Tensor | None = None,
    classes: Sequence[Any] | None = None,
    scale: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Drawn:
    """One sample's target and prediction, as pixels or as text; ``labelled`` is the mask of the target's labels.

    ``classes``: the names of the classes; ``scale``: the mean and deviation of standardised numbers.
    """
    if kind == "value" or (kind == "class" and prediction.numel() == 1 and not target.is_floating_point()):
        return _values_as_text(target, prediction, scale)
    if kind == "class":
        return _classes_as_text(target, prediction, labelled, classes)
    target, prediction = target.float(), prediction.float()
    if kind == "segmentation":
        pictures = [colour_mapped(x / 19, "tab20") for x in (target % 20, prediction.argmax(0) % 20)]
    elif kind == "depth":
        known = target[0] if labelled is None else target[0][labelled[0]]
        low, span = known.min(), (known.max() - known.min()).clamp_min(1e-6)
        pictures = [colour_mapped((x[0] - low) / span, "viridis") for x in (target, prediction)]
    elif kind == "normals":
        pictures = [pixels(torch.nn.functional.normalize(x, dim=0) / 2 + 0.5) for x in (target, prediction)]
    elif kind == "mask":
        pictures = [pixels(x) for x in (target, prediction.sigmoid())]
    else:
        raise ValueError(f"kind={kind} must be one of segmentation, depth, normals, mask, class, value.")
    if labelled is not None:
        pictures[0][~(labelled if labelled.dim() == 2 else labelled[0]).numpy()] = 0
    return {"target": pictures[0], "prediction": pictures[1]}


def _values_as_text(target: Tensor, prediction: Tensor, scale: tuple[Sequence[float], Sequence[float]] | None) -> Drawn:
    mean, std = (torch.tensor(part) for part in scale or (0.0, 1.0))
    return {"target": _join(target * std + mean), "prediction": _join(prediction * std + mean)}


def _classes_as_text(
    target: Tensor, prediction: Tensor, labelled: Tensor | None, classes: Sequence[Any] | None
) -> Drawn:
    # Binary attributes have one logit each, classes one logit a class.
    binary = target.is_floating_point()
    found = (prediction > 0).to(target) if binary else prediction.argmax(0)
    known = torch.ones_like(target, dtype=torch.bool) if labelled is None else labelled
    in_words = _attributes if binary else _class
    wrong = " (wrong)" if ((found != target) & known).any() else ""
    return {
        "target": in_words(target, known, classes),
        "prediction": in_words(found, torch.ones_like(known), classes) + wrong,
    }


def _class(index: Tensor, known: Tensor, classes: Sequence[Any] | None) -> str:
    if not known.all():
        return NO_LABEL
    return _join(index) if classes is None or index.dim() else str(classes[int(index)])


def _attributes(values: Tensor, known: Tensor, classes: Sequence[Any] | None) -> str:
    """The names of the attributes that are 1, with a question mark where one has no label; else the values."""
    if classes is None:
        return _join(values.where(known, torch.nan))
    rows = zip(classes, values.flatten().tolist(), known.flatten().tolist(), strict=True)
    return ", ".join(str(name) if has else f"{name}?" for name, value, has in rows if value == 1 or not has) or "none"


def _join(values: Tensor) -> str:
    return ", ".join(NO_LABEL if value != value else f"{value:.4g}" for value in values.flatten().tolist())


def _predict(
    engine: Engine, data: Any, device: torch.device, count: int
) -> Iterator[tuple[int, dict[str, Tensor], dict[str, tuple]]]:
    """For each sample: its index, its images (by task, if each has its own), and the arguments of ``draw`` by task."""
    dataset, classes, scales = data.test, getattr(data, "class_names", {}), getattr(data, "scales", {})
    with inference(engine):
        for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int).tolist():
            for inputs, targets in Batches(dataset, [(0, [index])], 0, split="test", on_error="skip"):
                arguments = {}
                for task, prediction in predictions(engine, to_device(inputs, device), targets):
                    if not isinstance(prediction, Tensor) or task.name not in data.kinds:  # what no kind describes
                        continue
                    target = targets[task.name]
                    mask = where_labelled(task, target)
                    arguments[task.name] = (
                        data.kinds[task.name], target[0], prediction[0].float().cpu(),
                        None if mask is None else mask[0], classes.get(task.name), scales.get(task.name),
                    )  # fmt: skip
                images = inputs if isinstance(inputs, dict) else {"": inputs}
                yield index, {name: image[0] for name, image in images.items()}, arguments


def _write(folder: Path, predicted: list[tuple[int, dict[str, Tensor], dict[str, tuple]]]) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # a resumed run has written it before
    folder.mkdir()
    entries: list[dict[str, Any]] = []
    for index, images, by_task in predicted:
        for own, image in images.items():
            number, tasks = len(entries), {}
            for task, arguments in by_task.items():
                if own in ("", task):
                    drawn = {n: _save(folder, f"{number}_{task}_{n}", x) for n, x in draw(*arguments).items()}
                    tasks[task] = {"kind": arguments[0], **drawn}
            if tasks:
                picture = _save(folder, f"{number}_image", _normalised_image(image))
                entries.append({"index": index, "split": "test", "image": picture, "tasks": tasks})
    write_atomic(folder / FILE, json.dumps(entries, indent=1) + "\n")


def _save(folder: Path, name: str, drawn: Pixels | str) -> str:
    if isinstance(drawn, str):
        return drawn
    from PIL import Image

    Image.fromarray(drawn).save(folder / f"{name}.png")
    return f"{name}.png"


def _normalised_image(image: Tensor) -> Pixels:
    """An image ``[1 or 3, H, W]`` whose least value becomes black and whose greatest becomes white."""
    if image.dim() != 3 or len(image) not in (1, 3):
        raise ValueError(f"an input of the shape {list(image.shape)} is no image [1 or 3, H, W]")
    image = image.float()
    return pixels((image - image.min()) / (image.max() - image.min()).clamp_min(1e-6))


def pixels(values: Tensor) -> Pixels:
    """``[1 or 3, H, W]`` from 0 to 1 as pixels."""
    clean = values.nan_to_num(0).clamp(0, 1).expand(3, -1, -1)
    return (clean * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def colour_mapped(values: Tensor, colours: str) -> Pixels:
    """``[H, W]`` from 0 to 1 in the colours of one of matplotlib's maps."""
    from matplotlib import colormaps

    return colormaps[colours](values.nan_to_num(0).clamp(0, 1).numpy(), bytes=True)[..., :3].copy()
