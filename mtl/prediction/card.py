"""The model card: a README.md that says what a model is, what it was trained on, and how good it is."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtl.prediction.predictor import Predictor
from mtl.report.statistics import interval
from mtl.runs.files import read_json, read_overrides

PICTURE = "run.png"  # losses, weights and the cosines of the tasks' gradients


def card(predictor: Predictor, runs: Sequence[Path], folder: Path) -> str:
    """The card of a model from ``runs``, the first of which is its own; their picture is copied into ``folder``."""
    config = predictor.config
    lines = ["---", "library_name: mtl", "license: unknown  # yours to choose", "tags: [multi-task-learning, pytorch]"]
    lines += ["---", "", f"# {config.get('name', 'model')}", ""]
    lines += [f"One trunk, {len(predictor.tasks)} tasks: {', '.join(predictor.tasks)}. Trained with mtl.", ""]
    lines += ["## Tasks", "", "| task | answer | classes or unit |", "|---|---|---|"]
    lines += [f"| {task} | {answer.kind} | {_meaning(answer)} |" for task, answer in predictor.answers.items()]
    lines += ["", "## Data", "", f"`{_target(config['data'])}`; {_sizes(predictor)}", ""]
    lines += ["## Training", "", f"- backbone: `{_target(config['backbone'])}`"]
    lines += [f"- strategy: `{_target(config['strategy'])}`, weighting: `{_target(config['weighting'])}`"]
    lines += [f"- step {predictor.step}, seed {config.get('seed')}"]
    overrides = read_overrides(runs[0]) if runs else None
    lines += [f"- command: `mtl-train {' '.join(overrides)}`"] if overrides else []
    lines += ["", *_metrics(runs)]
    if runs and (runs[0] / PICTURE).is_file():
        shutil.copyfile(runs[0] / PICTURE, folder / PICTURE)
        lines += [
            "## Do the tasks fight?",
            "",
            f"![losses, weights, and cosines of the tasks' gradients]({PICTURE})",
            "",
        ]
    lines += ["## Use", "", "```python", "import mtl", "", 'predictor = mtl.load("this folder")']
    lines += [f"predictor({_example(predictor)})", "```", ""]
    return "\n".join(lines)


def _meaning(answer: Any) -> str:
    names = ", ".join(str(name).replace("|", "\\|") for name in answer.names[:20])
    more = f" and {len(answer.names) - 20} more" if len(answer.names) > 20 else ""
    return names + more or answer.unit or "–"


def _target(node: Any) -> str:
    return str((node or {}).get("_target_", "?"))


def _sizes(predictor: Predictor) -> str:
    splits = predictor.description.get("splits") or {}
    return ", ".join(f"{own['size']} samples {name}" for name, own in splits.items()) or "sizes unknown"


def _metrics(runs: Sequence[Path]) -> list[str]:
    """The test metrics of the runs: the mean, with its 95 % interval from three seeds on."""
    found: dict[str, list[float]] = {}
    for run in runs:
        file = run / "summary.json"
        for name, value in (read_json(file).get("test") or {}).items() if file.is_file() else ():
            if isinstance(value, int | float):
                found.setdefault(name, []).append(value)
    if not found:
        return []
    count = max(map(len, found.values()))
    of = f", {count} seeds, with 95 % intervals" if count > 2 else f", the mean of {count} seeds" if count > 1 else ""
    lines = [f"## On the test split{of}", "", "| metric | value |", "|---|---|"]
    for name, values in found.items():
        own = interval(values)
        lines.append(f"| {name} | {own.mean:.4g}{'' if own.half is None else f' ± {own.half:.2g}'} |")
    return [*lines, ""]


def _example(predictor: Predictor) -> str:
    examples = {"image": '"photo.jpg"', "row": '{"column": "value"}', "text": '"a text"'}
    return examples.get(predictor.preprocess.takes, "an input")
