"""A trained model as a folder of plain files, which mtl.load takes again and a hub can take as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from mtl.prediction.card import card
from mtl.prediction.predictor import Predictor

WEIGHTS, CONFIG, DATA, CARD = "model.safetensors", "config.yaml", "data.json", "README.md"


def write_folder(predictor: Predictor, runs: Sequence[Path], folder: Path) -> float:
    """Write the weights, the configuration, what the data mean, and a model card; returns the largest difference.

    ``runs``: the run folders of several seeds, for the card's intervals. The folder is loaded again, and its weights
    compared, before it has its name: nothing half-written stays.
    """
    from safetensors.torch import save_file

    from mtl.prediction.predictor import load

    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        # Copies: safetensors refuses tensors that share memory, as those of a submodule that heads share.
        state = {
            name: value.detach().cpu().contiguous().clone() for name, value in predictor.model.state_dict().items()
        }
        save_file(state, temporary / WEIGHTS, {"format": "pt"})
        (temporary / CONFIG).write_text(yaml.safe_dump(predictor.config, sort_keys=False, allow_unicode=True))
        about = {key: value for key, value in predictor.description.items() if key != "splits"}
        content = {"step": predictor.step, "tasks": predictor.tasks, "description": about}
        (temporary / DATA).write_text(json.dumps(content, default=_plain, ensure_ascii=False, indent=1))
        (temporary / CARD).write_text(card(predictor, runs, temporary))
        again = load(temporary, device="cpu").model.state_dict()
        if again.keys() != state.keys() or not all(torch.equal(again[name].cpu(), state[name]) for name in state):
            raise ValueError(f"{folder} would hold other weights than the model.")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return 0.0


def is_folder(path: Path) -> bool:
    """Whether :func:`write_folder` has made it."""
    return all((path / name).is_file() for name in (WEIGHTS, CONFIG, DATA))


def read_folder(path: Path) -> dict[str, Any]:
    """The content as of a checkpoint; ValueError for a file that is broken."""
    from safetensors.torch import load_file

    try:
        about = json.loads((path / DATA).read_text())
        return {
            "config": yaml.safe_load((path / CONFIG).read_text()),
            "data": _with_tensors(about["description"]),
            "model": load_file(path / WEIGHTS),
            "ema": None,
            "step": about["step"],
            "tasks": about["tasks"],
        }
    except (ValueError, KeyError, OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read as an exported model: {error}") from error
    except Exception as error:  # safetensors has an exception of its own
        raise ValueError(f"{path / WEIGHTS} is broken: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"tensor": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    raise TypeError(f"{type(value).__name__} is no JSON")


def _with_tensors(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {"tensor", "dtype"}:
            return torch.tensor(value["tensor"], dtype=getattr(torch, value["dtype"]))
        return {key: _with_tensors(own) for key, own in value.items()}
    return [_with_tensors(own) for own in value] if isinstance(value, list) else value
