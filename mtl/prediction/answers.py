"""How a task's output becomes what its user wants to know: a class by its name, a number in its unit, a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mtl.losses import Focal, MaskedPoisson

MAPS = ("segmentation", "depth", "normals", "mask")  # the kinds that have a number, or several, a pixel
BY_CLASS = (nn.CrossEntropyLoss, nn.NLLLoss, Focal)
BINARY = (nn.BCELoss, nn.BCEWithLogitsLoss)


@dataclass(frozen=True)
class Answer:
    """What the output of a task means.

    ``kind``: one of ``class``, ``labels``, ``value``; of the maps ``segmentation``, ``depth``, ``normals``, ``mask``;
    ``token``; or ``output``, which stays as it is. ``names``: of the classes, of several labels or numbers. ``scale``:
    the mean and deviation of standardised numbers; ``unit``: of numbers, where it is known. ``logits``: false where the
    model itself gives probabilities, for torch.nn.BCELoss; ``logarithm``: true where the numbers are the exponentials
    of the model's, for the losses of counts.
    """

    kind: str
    names: tuple[Any, ...] = ()
    scale: tuple[Sequence[float], Sequence[float]] | None = None
    unit: str | None = None
    logits: bool = True
    logarithm: bool = False

    def scores(self, output: Any) -> Any:
        """The output of a batch as NumPy arrays: probabilities, numbers in their unit, normals of length one.

        ``[B, C]`` of classes, ``[B, L]`` of labels and numbers, maps ``[B, channels, H, W]``; an ``output`` keeps its
        form.
        """
        if self.kind == "output":
            return pytree.tree_map_only(Tensor, _to_numpy, output)
        values = _to_numpy(self.terms(output.float() if output.dtype in (torch.bfloat16, torch.float16) else output))
        if self.scale is None:
            return values
        # In float64, as the table's own numbers are.
        mean, std = (np.asarray(part, np.float64).reshape(-1, *[1] * (values.ndim - 2)) for part in self.scale)
        return values * std + mean

    def terms(self, output: Tensor) -> Tensor:
        """The same as tensors, where numbers are still standardised."""
        if self.kind == "token":
            return output[:, -1].softmax(-1)
        if self.kind in ("class", "segmentation"):
            return output.softmax(1)
        if self.kind == "normals":
            return nn.functional.normalize(output, dim=1)
        if self.kind in ("labels", "mask") and self.logits:
            output = output.sigmoid()
        output = output.exp() if self.logarithm else output
        return output[:, None] if output.dim() == 1 else output

    def say(self, scores: Any) -> Any:
        """One sample's scores in the user's terms.

        Of a class ``{"class", "probability", "probabilities"}``, of a token after a text ``{"text", "probability"}``;
        of labels and numbers a number, or by name where there are several; of maps an array ``[H, W]`` of classes,
        depth or probabilities, or normals ``[3, H, W]``.
        """
        if self.kind == "class":
            best = int(scores.argmax())
            probabilities = dict(zip(self.names, scores.tolist(), strict=True))
            return {"class": self.names[best], "probability": float(scores[best]), "probabilities": probabilities}
        if self.kind == "token":
            best = int(scores.argmax())
            return {"text": self.names[best], "probability": float(scores[best])}
        if self.kind in ("labels", "value"):
            return dict(zip(self.names, scores.tolist(), strict=True)) if self.names else float(scores[0])
        if self.kind == "segmentation":
            return scores.argmax(0)
        return scores[0] if self.kind in MAPS and len(scores) == 1 else scores

    @property
    def is_map(self) -> bool:
        """Whether a sample's answer is an array, for a file of its own, and not for the cells of a table."""
        return self.kind in (*MAPS, "output")

    def cells(self, task: str, scores: Any, spread: Any = None, every: bool = False) -> dict[str, Any]:
        """One sample's scores as the cells of a table, by the columns' names; ``spread``: their deviations.

        Of a class its name and its probability, with ``every`` those of all classes; of labels their probabilities; of
        numbers the numbers. Names of several are appended to the task's.
        """
        if self.kind == "class":
            best = int(scores.argmax())
            shown = {"": best} | ({f"_{name}": i for i, name in enumerate(self.names)} if every else {})
            named = {task: self.names[best]}
        else:
            shown, named = {f"_{name}": i for i, name in enumerate(self.names)} or {"": 0}, {}
        stem = task if self.kind == "value" else f"{task}_probability"
        named |= {f"{stem}{name}": float(scores[i]) for name, i in shown.items()}
        if spread is not None:
            named |= {f"{task}_spread{name}": float(spread[i]) for name, i in shown.items()}
        return named


def answer_of(
    task: str, output: Any, loss: Any, description: Mapping[str, Any], tokens: Sequence[str] | None = None
) -> Answer:
    """What a task's ``output`` for two samples means, by its ``loss`` and the ``description`` of its data.

    ``tokens``: the text of every token, for a data set of texts.
    """
    target = description["sample"]["targets"].get(task)
    kind = _kind(description["kinds"].get(task), output, loss, target, tokens is not None)
    names = tuple(tokens or ()) if kind == "token" else tuple(description["class_names"].get(task) or ())
    if kind in ("class", "segmentation") and len(names) != output.shape[1]:
        names = tuple(range(output.shape[1]))  # a head of another width than the data's classes, or no names
    if kind in ("labels", "value"):
        width = output[0].numel()
        names = () if width == 1 else names if len(names) == width else tuple(range(width))
    scale = description["scales"].get(task) if kind in ("value", "depth") else None
    unit = description["units"].get(task)
    scale = None if scale is None else (scale[0], scale[1])
    return Answer(kind, names, scale, unit, not isinstance(loss, nn.BCELoss), _is_logarithm(loss))


def _is_logarithm(loss: Any) -> bool:
    """Whether a loss takes the logarithms of counts, as torch.nn.PoissonNLLLoss does by default."""
    return isinstance(loss, MaskedPoisson) or getattr(loss, "log_input", False)


def _kind(shown: str | None, output: Any, loss: Any, target: Any, tokens: bool) -> str:
    """``shown``: the data set's own kind, see mtl.training.examples. The loss decides between classes and labels."""
    if not isinstance(output, Tensor) or not output.dim():
        return "output"
    if tokens and output.dim() == 3:
        return "token"
    floating, axes = (str(target["dtype"]).startswith("float"), len(target["shape"])) if target else (False, 1)
    flat = output.dim() <= 2
    if isinstance(loss, BINARY) or (isinstance(loss, Focal) and floating):
        return "labels" if flat else "mask"
    if isinstance(loss, BY_CLASS) or hasattr(loss, "ignore_index") or (shown == "class" and axes == 1):
        by_class = output.dim() == axes + 1 or output.dim() == axes == 2
        if by_class and output.shape[1] > 1:
            return "class" if output.dim() == 2 else "segmentation" if output.dim() == 4 else "output"
    if shown in MAPS and output.dim() == 4:
        return shown
    return "value" if flat and (floating or shown == "value") else "output"


def _to_numpy(values: Tensor) -> NDArray[Any]:
    return values.detach().cpu().numpy() if values.dtype != torch.bfloat16 else values.detach().cpu().float().numpy()
