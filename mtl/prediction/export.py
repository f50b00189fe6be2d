"""A trained model in files of other runtimes, which are run again and compared before they are kept."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtl.errors import first_line
from mtl.members import without_members
from mtl.prediction.predictor import Predictor
from mtl.prediction.program import Program
from mtl.system.environment import describe
from mtl.version import __version__

TOLERANCE = 1e-4  # of an answer, relative where it is above one
TRACED, CHECKED = 2, 3  # samples of a batch: torch takes one sample for a constant


def write_program(predictor: Predictor, format: str, file: Path) -> float:
    """Write ``file`` in the ``format`` onnx or pt2; returns the largest difference to the model, see TOLERANCE.

    The batch is dynamic, the outputs are named by task, and the metadata are those of :func:`metadata`. Of a model with
    members the predictor keeps the mixture at its preference alone, and that is what the file has. ValueError for
    a module that cannot be exported, by its name, and for a file that does not answer as the model does; no file is
    left then.
    """
    program = Program(predictor).eval().cpu()
    about = metadata(predictor, program)
    without_members(predictor.model)
    exported = _traced(program)
    write, run = FORMATS[format]
    temporary = file.with_name(f"{file.name}.tmp")
    try:
        with _quiet():
            write(exported, program, about, temporary)
            inputs = program.example(CHECKED, seed=1)
            with torch.inference_mode():
                expected = program(*inputs)
            found = run(temporary, program, inputs)
        difference = _difference(expected, found)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{file} would answer otherwise than the model: by {difference:.2g}, where {TOLERANCE:g} is allowed."
            )
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def metadata(predictor: Predictor, program: Program) -> dict[str, Any]:
    """What the numbers mean: inputs, tasks with classes and units, the preprocess, the run and the versions."""
    shapes = [list(own.shape[1:]) for own in program.example(TRACED)]
    return {
        "inputs": dict(zip(program.names, shapes, strict=True)),
        "takes": "pixels from 0 to 1, in the model's size; the normalisation is inside"
        if program.is_image
        else "what the preprocess gives",
        "tasks": {
            task: {
                "kind": answer.kind,
                "classes": list(answer.names) or None,
                "unit": answer.unit,
            }
            for task, answer in predictor.answers.items()
        },
        "preference": predictor.preference,
        "preprocess": predictor.preprocess.state(),
        "step": predictor.step,
        "mtl": __version__,
        "versions": describe(),
    }


def _traced(program: Program) -> torch.export.ExportedProgram:
    """The program as torch's exporter sees it; ValueError that names the module that it cannot trace."""
    inputs = program.example(TRACED)
    batch = torch.export.Dim("batch", min=1)
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(program, inputs, dynamic_shapes=(tuple({0: batch} for _ in inputs),))
    except Exception as error:
        name, reason = _culprit(program, inputs) or ("the model", error)
        raise ValueError(f"{name} cannot be exported: {first_line(reason)}") from error


def _culprit(program: Program, inputs: tuple[Tensor, ...]) -> tuple[str, Exception] | None:
    """The innermost module that cannot be traced by itself, and why; None where each one alone can."""
    seen: dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = {}

    def remember(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.setdefault(name, (module, given, named))

        return hook

    hooks = [
        module.register_forward_pre_hook(remember(name), with_kwargs=True)
        for name, module in program.model.named_modules()
        if name
    ]
    with torch.no_grad():
        program(*inputs)
    for hook in hooks:
        hook.remove()
    for name in sorted(seen, key=lambda name: -name.count(".")):  # the innermost first
        module, given, named = seen[name]
        try:
            with _quiet(), torch.no_grad():
                torch.export.export(module, given, named)
        except Exception as error:
            return f"{name} ({type(module).__name__})", error
    return None


def _write_pt2(exported: Any, program: Program, about: Mapping[str, Any], file: Path) -> None:
    with file.open("wb") as stream:
        torch.export.save(exported, stream, extra_files={"metadata.json": json.dumps(about)})


def _run_pt2(file: Path, program: Program, inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
    with file.open("rb") as stream:
        return torch.export.load(stream).module()(*inputs)


def _write_onnx(exported: Any, program: Program, about: Mapping[str, Any], file: Path) -> None:
    made = torch.onnx.export(
        exported, input_names=program.names, output_names=program.tasks, dynamo=True, verbose=False, optimize=True
    )
    assert made is not None
    made.model.metadata_props.update({"mtl": json.dumps(about)})
    made.save(str(file), external_data=False)


def _run_onnx(file: Path, program: Program, inputs: tuple[Tensor, ...]) -> Sequence[Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    named = {name: value.numpy() for name, value in zip(program.names, inputs, strict=True)}
    known = {own.name for own in session.get_inputs()}  # an input that no task reads is left out
    answers = session.run(program.tasks, {name: value for name, value in named.items() if name in known})
    return [torch.from_numpy(answer) for answer in answers]


FORMATS = {"onnx": (_write_onnx, _run_onnx), "pt2": (_write_pt2, _run_pt2)}


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference, relative where a number is above one."""
    pairs = zip(expected, found, strict=True)
    return max(float(((a - b).abs() / a.abs().clamp(min=1)).max()) for a, b in pairs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of torch's exporters, which are about their own inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
