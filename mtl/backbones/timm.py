"""timm's models as shared trunks."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import Format
from torch import Tensor, nn

from mtl.errors import first_line
from mtl.pretrained import Weights, few, named_for, read, report

TIMMS_LOG = logging.getLogger("timm.models._builder")  # of loading, of which mtl.pretrained.report says more in less
FEATURES = ("pooled", "tokens", "pyramid")


class Timm(nn.Module):
    """A timm model by its name, without its classifier.

    ``features`` says what it returns: ``pooled`` is one vector ``[B, C]``, ``tokens`` the last layer's positions
    ``[B, N, C]`` (with the class token, where there is one), ``pyramid`` a list of maps ``[B, C_i, H_i, W_i]`` from
    fine to coarse; None is ``pooled``. ``in_channels`` and ``image_size``, a side or (height, width), are the data's.
    ``name`` may be of the hub or of a folder, as ``hf-hub:timm/resnet18.a1_in1k`` or ``local-dir:FOLDER``. ``options``
    goes to ``timm.create_model``, as ``out_indices``, which levels a pyramid has.

    ``pretrained``: timm's own weights, or those of a file or folder, see :func:`mtl.pretrained.read`; ``mapping``:
    by_order where their names are of another code. The classifier is left out, and the first layer fitted to
    ``in_channels``. A line says what was loaded, missing and left over. ``mean`` and ``std``, a number for each of
    three channels, are those of the pixels that the weights are for; None: the file's own, else timm's for the model.

    Raises ValueError for a name that timm does not have (with the closest ones), for weights that cannot be
    loaded or of which none fits, and for a kind of features that the model does not give.
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str = False,
        features: str | None = None,
        in_channels: int = 3,
        image_size: int | Sequence[int] | None = None,
        options: Mapping[str, Any] | None = None,
        mapping: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        features = features or "pooled"
        if features not in FEATURES:
            raise ValueError(f"features={features} must be one of {', '.join(FEATURES)}.")
        options = dict(options or {}, in_chans=in_channels)
        if mapping is not None and not isinstance(pretrained, str):
            raise ValueError(f"mapping={mapping} is for the weights of a file: pretrained=FILE, not {pretrained}.")
        if pixels := _pixels(mean, std):
            options["pretrained_cfg_overlay"] = {**(options.get("pretrained_cfg_overlay") or {}), **pixels}
        if image_size is not None and _has_fixed_input_size(name):
            options.setdefault("img_size", image_size)  # its position embedding has a size of its own
        self.features, self._in_channels = features, in_channels
        # timm's models have more than nn.Module
        self.model: Any = _create(name, pretrained, mapping, features, options)

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Images ``[B, C, H, W]`` to the features."""
        if self.features == "pooled":
            vector = self.model(images)
            if vector.dim() != 2:
                raise ValueError(
                    f"features=pooled: this model gives {list(vector.shape)}, not one vector an image; use tokens."
                )
            return vector
        if self.features == "tokens":
            return as_tokens(self.model.forward_features(images), self.last_axis_is_channels)
        return [as_map(level, self.last_axis_is_channels) for level in self.model(images)]

    @property
    def feature_info(self) -> dict[str, Any]:
        """What heads may ask for beside what the features themselves show."""
        return {"reductions": list(self.model.feature_info.reduction())} if self.features == "pyramid" else {}

    @property
    def data_config(self) -> dict[str, Any] | None:
        """Mean and deviation of the pixels for which the weights were made, whether they are loaded or not.

        None where the inputs have not three channels. Size, crop and interpolation are the data set's own.
        """
        config = resolve_model_data_config(self.model)
        return {key: list(config[key]) for key in ("mean", "std")} if self._in_channels == 3 else None

    @property
    def last_axis_is_channels(self) -> bool:
        """Whether the model's own maps are ``[B, H, W, C]``."""
        return Format(getattr(self.model, "output_fmt", Format.NCHW)) == Format.NHWC


def _has_fixed_input_size(name: str) -> bool:
    """Whether the model has parameters for each place of the image; ValueError for a name that timm does not have."""
    if ":" in name:  # of the hub or of a folder, whose configuration timm reads
        try:
            with torch.device("meta"):
                return bool(timm.create_model(name).pretrained_cfg.get("fixed_input_size"))
        except Exception as error:
            raise ValueError(f"name={name} cannot be made by timm: {_reason(error)}") from error
    if not timm.is_model(name.split(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=4)
        raise ValueError(f"name={name} is no timm model; the closest are {', '.join(close) or 'none'}.")
    config = timm.get_pretrained_cfg(name)
    return config is not None and bool(config.fixed_input_size)


def _create(
    name: str, pretrained: bool | str, mapping: str | None, features: str, options: dict[str, Any]
) -> nn.Module:
    if features == "pyramid":
        options["features_only"] = True
    else:
        options["num_classes"] = 0
    if (file := options.pop("checkpoint_path", None)) is not None:
        # As pretrained weights, for timm's checkpoint_path fits neither a model without its classifier nor a pyramid.
        own = {**(options.get("pretrained_cfg_overlay") or {}), "file": str(file), "source": ""}
        options["pretrained_cfg_overlay"], pretrained = own, True
    file = (options.get("pretrained_cfg_overlay") or {}).get("file")
    if pretrained and file is not None and not Path(file).is_file():
        raise ValueError(f"the weights of {name} are to come from {file}, which is no file.")
    if isinstance(pretrained, str):
        weights = _named_for(name, read(pretrained), mapping, options)
        own = {**(weights.data_config or {}), **(options.get("pretrained_cfg_overlay") or {})}
        options["pretrained_cfg_overlay"] = {**own, "state_dict": weights.tensors, "source": ""}
        file = weights.source
    try:
        with _recorded_loads() as loads:
            model = timm.create_model(name, pretrained=bool(pretrained), **options)
    except Exception as error:
        raise _creation_error(error, name, bool(pretrained), file, features, options) from error
    if pretrained:
        _check_loads(loads, file or f"the pretrained weights of {name}", name)
        _forget_tensors(model)
    return model


def _named_for(name: str, weights: Weights, mapping: str | None, options: Mapping[str, Any]) -> Weights:
    """The weights under timm's names, of the whole model with its classifier."""
    others = ("features_only", "out_indices", "num_classes", "in_chans", "img_size", "pretrained_cfg_overlay")
    if ":" not in name and weights.model not in (None, name.partition(".")[0]):
        raise ValueError(f"the weights in {weights.source} are of {weights.model}, but backbone.name={name}.")
    try:
        with torch.device("meta"):
            whole = timm.create_model(name, **{key: value for key, value in options.items() if key not in others})
    except Exception:  # said where the model itself is made
        return weights
    return named_for(weights, whole.state_dict(), mapping, _classifier(whole))


def _classifier(model: nn.Module) -> tuple[str, ...]:
    """How the names of timm's classifier begin."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{part}." for part in ([named] if isinstance(named, str) else named))


def _forget_tensors(model: nn.Module) -> None:
    """Leave the weights out of timm's description of the model, where they would be kept and copied with it."""
    for module in model.modules():
        for description in (getattr(module, key, None) for key in ("pretrained_cfg", "default_cfg")):
            if isinstance(description, dict):
                description.pop("state_dict", None)


def _pixels(mean: Sequence[float] | None, std: Sequence[float] | None) -> dict[str, list[float]]:
    given = {key: list(value) for key, value in (("mean", mean), ("std", std)) if value is not None}
    for key, value in given.items():
        if len(value) != 3 or (key == "std" and min(value) <= 0):
            above = " above 0" if key == "std" else ""
            raise ValueError(f"{key}={value} must be three numbers{above}, of the channels of pixels from 0 to 1.")
    return given


def _creation_error(
    error: Exception, name: str, pretrained: bool, file: str | None, features: str, options: Mapping[str, Any]
) -> ValueError:
    """What was wrong: the weights, the kind of features, or an option."""
    reason = _reason(error)
    if pretrained and _can_be_made(name, options):  # then the weights are what is wrong
        if file is not None:
            return ValueError(f"the weights in {file} cannot be loaded into {name}: {reason}")
        return ValueError(
            f"pretrained=true: the weights of {name} could not be loaded ({reason}); "
            "pretrained=false starts from random ones."
        )
    if features == "pyramid" and _can_be_made(name, {k: v for k, v in options.items() if k != "features_only"}):
        return ValueError(f"features=pyramid is not given by timm's {name} ({reason}); use pooled or tokens.")
    return ValueError(f"timm cannot make {name} with {options}: {reason}")


def _reason(error: Exception) -> str:
    """The first line of an error, or the first of the mismatches that torch lists below it."""
    lines = str(error).split("\n")
    shapes = re.findall(r"size mismatch for (\S+): .*torch.Size\((\[.*?\])\).*torch.Size\((\[.*?\])\)", str(error))
    if shapes:
        return few([f"{key} is {there} in the file and {here} in the model" for key, there, here in shapes])
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):
        more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
        return lines[1].strip() + more
    return first_line(error)


Load = tuple[nn.Module, list[str], list[str]]  # a model, and the keys that the weights lack and have too many


@contextmanager
def _recorded_loads() -> Iterator[list[Load]]:
    """The state dicts that are loaded inside the context: timm does not return which keys fitted, and warns of all."""
    loads: list[Load] = []
    original = nn.Module.load_state_dict

    def record(module: nn.Module, *arguments: Any, **named: Any) -> Any:
        result = original(module, *arguments, **named)
        loads.append((module, list(result.missing_keys), list(result.unexpected_keys)))
        return result

    with patch.object(nn.Module, "load_state_dict", record), patch.object(TIMMS_LOG, "disabled", True):
        yield loads


def _check_loads(loads: Sequence[Load], source: str, name: str) -> None:
    """Say what the model has taken; ValueError if no key of the weights fitted."""
    for module, missing, left_over in loads[-1:]:  # a format of its own, loaded otherwise, is not recorded
        own = [key for key in module.state_dict() if not key.startswith(_classifier(module))]
        report(name, source, own, [key for key in missing if key in own], left_over)


def _can_be_made(name: str, options: Mapping[str, Any]) -> bool:
    try:
        with torch.device("meta"):
            timm.create_model(name, **options)
    except Exception:
        return False
    return True


def as_tokens(features: Tensor, last_axis_is_channels: bool) -> Tensor:
    """Maps ``[B, C, H, W]`` or ``[B, H, W, C]`` to ``[B, H*W, C]``; tokens stay."""
    if not isinstance(features, Tensor):
        raise ValueError(f"features=tokens: this model gives a {type(features).__name__}; use pooled or pyramid.")
    if features.dim() != 4:
        return features
    return features.flatten(1, 2) if last_axis_is_channels else features.flatten(2).transpose(1, 2)


def as_map(features: Tensor, last_axis_is_channels: bool) -> Tensor:
    """Maps as ``[B, C, H, W]``."""
    return features.permute(0, 3, 1, 2) if last_axis_is_channels else features
