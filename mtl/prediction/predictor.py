"""A trained model with everything that its numbers mean, from a checkpoint alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.utils.data import default_collate

from mtl.data.preprocess import TextPreprocess
from mtl.engine.engine import Engine
from mtl.engine.precision import DTYPES, Precision
from mtl.errors import first_line, require, suggestion
from mtl.members import preference_of
from mtl.model import MultiTaskModel
from mtl.prediction.answers import Answer, answer_of
from mtl.preference import Preference, shares

BATCH = 64  # raw inputs that are answered together


class Predictor:
    """What a trained model says of raw inputs; :func:`load` makes one of a checkpoint.

    ``model``: the plain ``nn.Module`` in evaluation mode, batch -> dict task -> output. ``preprocess``: one raw input
    -> its tensors, exactly as in the evaluation; see mtl.data.preprocess. ``answers[task]``: what an output means.
    ``classes[task]``: the names of classes or labels, in the order of the outputs; ``units[task]``: of numbers, None
    where it is not known. ``description``: all that the checkpoint says of its data, see mtl.data.metadata; ``config``:
    the run's configuration; ``path`` and ``step``: which checkpoint it is.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        preprocess: Any,
        answers: Mapping[str, Answer],
        description: Mapping[str, Any],
        device: torch.device,
        precision: str = "32",
    ) -> None:
        self.model, self.preprocess, self.answers = model, preprocess, dict(answers)
        self.description, self.device = description, device
        self.config: dict[str, Any] = {}
        self.path, self.step = Path(), 0
        self._engine = Engine(model, [], Precision(DTYPES[precision]))

    @property
    def tasks(self) -> list[str]:
        """The tasks' names."""
        return list(self.answers)

    @property
    def classes(self) -> dict[str, list[Any]]:
        """By task, the names of its classes or labels, in the order of the outputs."""
        by_name = ("class", "labels", "segmentation")
        return {task: list(own.names) or [task] for task, own in self.answers.items() if own.kind in by_name}

    @property
    def units(self) -> dict[str, str | None]:
        """By task with numbers, their unit; None where it is not known, as of a table's own numbers."""
        return {task: own.unit for task, own in self.answers.items() if own.kind in ("value", "depth")}

    @property
    def preference(self) -> dict[str, float] | None:
        """Of a model with members (strategy=pareto_manifold), each task's share; None for another model.

        It can be set at any time, by task or in their order: the next answers are those of this point of the front.
        ValueError for a model without members, and for a preference that is none of its tasks'.
        """
        found = preference_of(self.model)
        return None if found is None else dict(zip(found.tasks, found.shares.tolist(), strict=True))

    @preference.setter
    def preference(self, preference: Preference) -> None:
        found = preference_of(self.model)
        if found is None:
            raise ValueError(
                f"{self.path} has no members: only strategy=pareto_manifold trains a model for a preference."
            )
        found.set(shares(preference, found.tasks))

    def __call__(self, raw: Any) -> Any:
        """The answers for one raw input: a dict task -> answer in the user's terms, see :meth:`Answer.say`.

        For a list of raw inputs, or a DataFrame of rows, a list of such dicts. ValueError for an input that the
        preprocess does not take.
        """
        if not isinstance(raw, list | pd.DataFrame):
            return self._say(self.scores(default_collate([self.preprocess(raw)])))[0]
        # Texts may have different lengths, which make no batch.
        size = 1 if self.preprocess.takes == "text" else BATCH
        batches = [self.collate(raw[start : start + size]) for start in range(0, len(raw), size)]
        return [said for batch in batches for said in self._say(self.scores(batch))]

    def collate(self, raws: Sequence[Any] | pd.DataFrame) -> Any:
        """The inputs of several raw inputs as a batch."""
        if isinstance(raws, pd.DataFrame):
            if hasattr(self.preprocess, "batch"):
                return self.preprocess.batch(raws)
            raws = raws.to_dict("records")
        return default_collate([self.preprocess(raw) for raw in raws])

    def scores(self, inputs: Any) -> dict[str, Any]:
        """By task, the scores of a batch of inputs as the model takes them; see :meth:`Answer.scores`."""
        from mtl.training.loaders import to_device  # which imports timm and W&B

        inputs = to_device(inputs, self.device)
        by_task = isinstance(inputs, Mapping) and inputs.keys() <= {*self.description["targets"]}
        if self.description["inputs_per_task"] and not by_task:
            inputs = dict.fromkeys(self.tasks, inputs)  # every task is asked about the same inputs
        with torch.inference_mode():
            features = self._engine.features(inputs)
            return {task: own.scores(self._engine.predict(task, features)) for task, own in self.answers.items()}

    def _say(self, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
        count = len(next(iter(scores.values())))
        return [{task: own.say(scores[task][i]) for task, own in self.answers.items()} for i in range(count)]


def load(
    path: str | Path,
    which: str = "best",
    device: str = "auto",
    precision: str | None = None,
    tasks: Sequence[str] | None = None,
    preference: Preference | None = None,
) -> Predictor:
    """The predictor of a checkpoint, of a run folder's best (or, with ``which="last"``, its last) one, or of an export.

    Neither Hydra's composition nor the data's files are needed. The weights are the averaged ones, where the run had
    some (``trainer.ema``). ``precision``: 32, bf16 or fp16; None is that of the run. ``tasks``: the heads to keep; None
    is all of them. ``preference``: of a model with members, the point of its front, by task or in their order; None is
    that of equal shares. A checkpoint may name trusted code only, see mtl.runs.targets.

    ValueError if the file is missing, broken, of another format or names other code; if it is older than what this
    needs; for an unknown device or task; for a preference of other tasks, or for a model without members.
    """
    from mtl.evaluate import find_checkpoint
    from mtl.prediction.folder import WEIGHTS, is_folder, read_folder
    from mtl.runs import checkpoint

    require("which", which, "best or last", which in ("best", "last"))
    require("precision", precision, f"one of {', '.join(DTYPES)}", precision is None or precision in DTYPES)
    if is_folder(Path(path)):
        content = read_folder(Path(path))
        return _of_content(Path(path) / WEIGHTS, content, device, precision, tasks or content["tasks"], preference)
    file = find_checkpoint(Path(path), which)
    return _of_content(file, checkpoint.load(file), device, precision, tasks, preference)


def _of_content(
    path: Path,
    content: Mapping[str, Any],
    device: str,
    precision: str | None,
    tasks: Sequence[str] | None,
    preference: Preference | None,
) -> Predictor:
    from omegaconf import OmegaConf

    from mtl.config.architecture import without_weights
    from mtl.config.build import build_trained
    from mtl.config.preference import chosen_shares, prefer
    from mtl.config.schema import completed
    from mtl.jobs.overrides import config_folder
    from mtl.runs.files import read_overrides, run_folder
    from mtl.runs.targets import check_targets, find_own_code
    from mtl.system.environment import find_device

    description = content["data"]
    folder = run_folder(path)
    find_own_code(config_folder((folder and read_overrides(folder)) or []))
    check_targets(path, {"config": content["config"], "preprocess": description.get("preprocess")})
    where = find_device(device)
    cfg = without_weights(OmegaConf.create(completed(content["config"])))
    own = chosen_shares(cfg, preference)
    try:
        # The weights that are drawn here are replaced: the caller's random numbers go on as they were.
        with torch.random.fork_rng(devices=[]):
            trained = build_trained(cfg, description)
        trained.model.load_state_dict(content["ema"] or content["model"])
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {first_line(error)}") from error
    prefer(trained.model, own)
    kept = _chosen(list(trained.model.heads), tasks)
    for task in set(trained.model.heads) - set(kept):
        del trained.model.heads[task]
    tokens = trained.preprocess.tokens if isinstance(trained.preprocess, TextPreprocess) else None
    answers = {task: answer_of(task, trained.outputs[task], trained.losses[task], description, tokens) for task in kept}
    model = trained.model.to(where)
    if cfg.trainer.channels_last:
        model.to(memory_format=torch.channels_last)
    predictor = Predictor(model, trained.preprocess, answers, description, where, precision or cfg.trainer.precision)
    predictor.config, predictor.path, predictor.step = content["config"], path, content["step"]
    return predictor


def _chosen(heads: Sequence[str], tasks: Sequence[str] | None) -> list[str]:
    for task in tasks or ():
        if task not in heads:
            raise ValueError(f"tasks={task} is no task of the model; {suggestion(task, heads)}.")
    return [task for task in heads if tasks is None or task in tasks]
