"""A plain torch data set of your own as data, with a split, batches and metrics by configuration."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate
from torchmetrics import Metric

from mtl.data import SPLITS
from mtl.errors import reason_of, require_positive

log = logging.getLogger(__name__)

FEW = 20  # samples of a split, below which its metrics are coarse
EXAMPLE = "a sample is (input, {'colour': 2, 'size': 0.5}), as in mtl.data.dataset"


class OwnDataset:
    """A map-style ``torch.utils.data.Dataset`` whose samples are ``(input, {target: value})``.

    Write the data set, as in ``mine.py``::

        class Blots(torch.utils.data.Dataset):
            def __len__(self):
                return 1000

            def __getitem__(self, index):
                return image, {"colour": 2, "size": torch.tensor([0.5])}  # image [3, 32, 32], float

    and name it, with a head and a loss for each target, on the command line::

        mtl-train data=dataset data.dataset._target_=mine.Blots \\
            +head@heads.colour=linear heads.colour.out_features=3 +losses.colour._target_=torch.nn.CrossEntropyLoss

    or, with metrics, in ``my_conf/experiment/blots.yaml``::

        # @package _global_
        defaults:
          - /head@heads.colour: linear
          - /head@heads.size: linear
          - override /data: dataset
        name: blots
        data: {dataset: {_target_: mine.Blots}, batch_size: 64}
        heads: {colour: {out_features: 3}, size: {out_features: 1}}
        losses: {colour: {_target_: torch.nn.CrossEntropyLoss}, size: {_target_: torch.nn.MSELoss}}
        metrics:
          colour: {accuracy: {_target_: torchmetrics.classification.MulticlassAccuracy, num_classes: 3}}

    ``mtl-train -cd my_conf +experiment=blots`` trains on it. Without metrics a target is measured by its loss alone.

    The shares ``validation`` and ``test`` of the samples are held out, by a permutation of ``split_seed`` that is the
    same in every run. Data sets with a split of their own are named by ``val_dataset`` and ``test_dataset``; only what
    is not named is held out. The targets are those of the first sample.

    Inputs and targets are collated by torch. ``examples/`` shows images ``[1 or 3, H, W]`` with their classes (whole
    numbers, by their index), numbers, and maps ``[H, W]`` of classes. The backbone is told ``in_channels`` and
    ``image_size`` where the input is an image ``[C, H, W]``, ``in_features`` where it is a vector.

    Raises ValueError, with what is expected, for a data set without a length, samples of another form, a split that
    would be empty, and a share outside 0 to 1.
    """

    def __init__(
        self,
        dataset: Dataset,
        val_dataset: Dataset | None = None,
        test_dataset: Dataset | None = None,
        validation: float = 0.15,
        test: float = 0.15,
        batch_size: int = 32,
        split_seed: int = 0,
    ) -> None:
        require_positive(batch_size=batch_size)
        named = {"dataset": dataset, "val_dataset": val_dataset, "test_dataset": test_dataset}
        samples = {name: _first_sample(name, own) for name, own in named.items() if own is not None}
        inputs, targets = samples["dataset"]
        for name, (other, own) in samples.items():
            if own.keys() != targets.keys():
                raise ValueError(f"{name} has the targets {_names(own)}, but dataset has {_names(targets)}.")
            if _shape(other) != _shape(inputs):
                raise ValueError(f"{name} has inputs of shape {_shape(other)}, but dataset has {_shape(inputs)}.")
        shares = {"val": 0.0 if "val_dataset" in samples else validation}
        shares["test"] = 0.0 if "test_dataset" in samples else test
        parts = _split(len(dataset), shares, split_seed)  # type: ignore[arg-type]
        self.train: Any = Part(dataset, parts["train"])
        self.val: Any = Part(dataset, parts["val"]) if val_dataset is None else val_dataset
        self.test: Any = Part(dataset, parts["test"]) if test_dataset is None else test_dataset
        self.targets, self.batch_size, self.input_info = tuple(targets), batch_size, _describe_input(inputs)
        self.kinds = _kinds_shown(inputs, targets)

    def metrics(self, target: str) -> dict[str, Metric]:
        """None: metrics.<task> in the configuration names them."""
        return {}


class Part(Subset):
    """A split of a data set, whose samples errors name by their index in it."""

    def own_indices(self, indices: Sequence[int]) -> list[int]:
        """The same samples in the whole data set."""
        return [int(self.indices[index]) for index in indices]


def _first_sample(name: str, dataset: Any) -> tuple[Any, Mapping[str, Any]]:
    """The first sample; ValueError if it is not an input and a dict of targets."""
    where = f"{name} ({type(dataset).__name__})"
    for member in ("__len__", "__getitem__"):
        own = getattr(type(dataset), member, None)
        if own is None or own is getattr(Dataset, member, None):  # torch's own only raises
            raise ValueError(f"{where} has no {member}: it must be a map-style data set.")
    if not len(dataset):
        raise ValueError(f"{where} has no sample.")
    try:
        sample = dataset[0]
    except Exception as error:
        raise ValueError(f"{where}: the first sample cannot be read: {reason_of(error)}") from error
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise ValueError(f"{where}: the first sample is a {_kind(sample)}; {EXAMPLE}.")
    inputs, targets = sample
    if not isinstance(targets, Mapping) or not targets or not all(isinstance(key, str) for key in targets):
        raise ValueError(f"{where}: the targets of the first sample are a {_kind(targets)}; {EXAMPLE}.")
    for part, value in {"the input": inputs, **{f"the target {key}": value for key, value in targets.items()}}.items():
        _check_collates(f"{where}: {part} of the first sample", value)
    return inputs, targets


def _check_collates(named: str, value: Any) -> None:
    """ValueError for a value of which torch makes no batch, as an image of PIL or None."""
    try:
        default_collate([value])
    except TypeError as error:
        kind = f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
        gap = "; a missing label is -100 for a class and NaN for a number" if value is None else ""
        image = "; torchvision's pil_to_tensor(image).float() / 255 makes a tensor of it" if "PIL" in kind else ""
        raise ValueError(f"{named} is a {kind}, and must be a tensor, an array or a number{gap}{image}.") from error


def _split(size: int, shares: Mapping[str, float], seed: int) -> dict[str, list[int]]:
    """The samples of each split, in ascending order."""
    key = {"val": "validation", "test": "test"}
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"{key[name]}={share} must be from 0 to below 1.")
    counts = {name: max(1, round(size * share)) if share else 0 for name, share in shares.items()}
    counts["train"] = size - sum(counts.values())
    if counts["train"] < 1:
        raise ValueError(f"validation and test leave none of {size} samples for training.")
    for name, count in counts.items():
        if 0 < count < FEW and name != "train":
            log.warning(
                "data: %s has %d of the %d samples, each %.0f %% of an accuracy; data.%s=… is the share",
                name, count, size, 100 / count, key[name],
            )  # fmt: skip
    order = np.random.default_rng(seed).permutation(size)
    edges = np.cumsum([0, *(counts[name] for name in SPLITS)])
    return {name: sorted(order[edges[i] : edges[i + 1]].tolist()) for i, name in enumerate(SPLITS)}


def _describe_input(inputs: Any) -> dict[str, Any]:
    """The arguments for a backbone that an input shows."""
    shape = _shape(inputs)
    if isinstance(shape, list) and len(shape) == 3:
        if shape[2] in (1, 3) and min(shape[:2]) > 8:
            log.warning(
                "data: an input of shape %s is taken for %d channels of %d×%d; if its channels come last, return "
                "x.permute(2, 0, 1)", shape, *shape,
            )  # fmt: skip
        return {"in_channels": shape[0], "image_size": shape[1] if shape[1] == shape[2] else shape[1:]}
    return {"in_features": shape[0]} if isinstance(shape, list) and len(shape) == 1 else {}


def _kinds_shown(inputs: Any, targets: Mapping[str, Any]) -> dict[str, str]:
    """How ``examples/`` shows each target of an image, see mtl.training.examples; empty where the input is none."""
    shape = _shape(inputs)
    if not isinstance(shape, list) or len(shape) != 3 or shape[0] not in (1, 3):
        return {}
    kinds: dict[str, str] = {}
    for name, own in targets.items():
        if not isinstance(own, Tensor | np.ndarray | np.generic | int | float):
            continue
        value = torch.as_tensor(own)
        if value.dim() < 2:
            kinds[name] = "class" if not value.dim() and not value.is_floating_point() else "value"
        elif value.dim() == 2 and not value.is_floating_point():
            kinds[name] = "segmentation"
    return kinds


def _shape(value: Any) -> list[int] | str:
    return list(value.shape) if isinstance(value, Tensor | np.ndarray) else type(value).__name__


def _names(targets: Mapping[str, Any]) -> str:
    return ", ".join(targets)


def _kind(value: Any) -> str:
    return f"{type(value).__name__}{f' of {len(value)}' if isinstance(value, tuple | list | Mapping) else ''}"
