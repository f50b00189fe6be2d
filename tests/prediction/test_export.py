"""mtl-export: other runtimes give mtl.load's answers for raw inputs, and folders load again."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import nn
from torchvision.transforms.v2 import functional as F

import mtl
from mtl import export
from mtl.prediction import export as written

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
KINDS = {
    "image_table": ("image_table",),
    "a mixture of experts": ("image_table", "architecture=mmoe", "architecture.experts=2"),
    "dense heads on a pyramid": ("scenes",),
    "table": ("table",),
    "text": ("stdlib",),
}


def command(*arguments):
    """The command line in this process; its sentence, or the one it exits with."""
    given = export._parser().parse_args([str(argument) for argument in arguments])
    export._check(given)
    return export.export(given)


def run_file(file, names, inputs):
    """An exported file's answers by task, read by its own runtime."""
    if file.suffix == ".pt2":
        extra = {"metadata.json": ""}
        answers = torch.export.load(file, extra_files=extra).module()(*inputs)
        answers = [answer.detach() for answer in answers]
        return dict(zip(names, answers, strict=True)), json.loads(extra["metadata.json"])
    session = onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])
    given = {own.name: value.numpy() for own, value in zip(session.get_inputs(), inputs, strict=True)}
    answers = [torch.from_numpy(own) for own in session.run(None, given)]
    about = json.loads(session.get_modelmeta().custom_metadata_map["mtl"])
    return dict(zip([own.name for own in session.get_outputs()], answers, strict=True)), about


def raw_inputs(predictor, folder, count):
    """Raw inputs of a run's own kind, and the tensors that an exported file takes for them."""
    own, takes = predictor.preprocess, predictor.preprocess.takes
    if takes == "row":
        rows = pd.read_csv(folder.parent / "data" / "table.csv").head(count)
        batch = own.batch(rows)
        return rows, [batch["numbers"], batch["categories"]]
    if takes == "text":
        texts = [f"the cat number {i} sat" for i in range(10, 10 + count)]
        tokens = torch.stack([own(text) for text in texts])
        return texts, [torch.cat([tokens, tokens], 1)[:, -own.context :]]
    rng = np.random.default_rng(0)
    size = (40, 50) if own.fit == "resize" else own.size
    arrays = [rng.random((*size, 3), dtype=np.float32) for _ in range(count)]
    pixels = [F.to_dtype(own.fitted(own.read(array)), torch.float32, scale=True) for array in arrays]
    return arrays, [torch.stack(pixels).as_subclass(torch.Tensor)]


ONNX_SLOW = ("a mixture of experts", "dense heads on a pyramid")  # tens of seconds each; their pt2 is fast


@pytest.mark.parametrize(
    ("kind", "format"),
    [
        pytest.param(
            kind, format, marks=[pytest.mark.slow] * (format == "onnx" and kind in ONNX_SLOW), id=f"{kind}-{format}"
        )
        for kind in KINDS
        for format in ("onnx", "pt2")
    ],
)
def test_the_file_answers_raw_inputs_as_the_predictor_does(trained, tmp_path, kind, format):
    folder = trained(*KINDS[kind])
    predictor = mtl.load(folder)
    file = tmp_path / f"model.{format}"
    sentence = command(folder, "--format", format, "--out", file)
    difference = float(sentence.rpartition(" ")[2])
    assert 0 <= difference < 1e-4 and sentence.startswith(f"{file}: {', '.join(predictor.tasks)}; the largest")
    raws, inputs = raw_inputs(predictor, folder, 5)
    found, about = run_file(file, predictor.tasks, inputs)
    # texts that a loader would answer one by one are a batch here
    expected = predictor.scores(inputs[0] if kind == "text" else predictor.collate(raws))
    assert list(found) == predictor.tasks
    for task, answer in expected.items():
        assert np.allclose(found[task].numpy(), answer, rtol=1e-4, atol=1e-4), task
        assert not np.allclose(found[task].numpy(), np.roll(answer, 1, 0), rtol=1e-4, atol=1e-4), task
    assert {task: own["classes"] for task, own in about["tasks"].items() if own["kind"] == "class"} == {
        task: names for task, names in predictor.classes.items() if predictor.answers[task].kind == "class"
    }
    assert about["mtl"] and about["preprocess"]["_target_"]


def test_one_head_alone(trained, tmp_path):
    folder = trained("image_table")
    whole, alone = tmp_path / "whole.pt2", tmp_path / "alone.pt2"
    command(folder, "--format", "pt2", "--out", whole)
    command(folder, "--format", "pt2", "--tasks", "size", "--out", alone)
    predictor = mtl.load(folder)
    _, inputs = raw_inputs(predictor, folder, 3)
    one, about = run_file(alone, ["size"], inputs)
    every, _ = run_file(whole, predictor.tasks, inputs)
    assert list(about["tasks"]) == ["size"] and torch.equal(one["size"], every["size"])
    with pytest.raises(ValueError, match="weigth"):
        command(folder, "--format", "pt2", "--tasks", "weigth", "--out", tmp_path / "no.pt2")


@pytest.mark.parametrize("kind", ["image_table", "table", "text"])
def test_a_folder_loads_again_without_the_run(trained, tmp_path, kind):
    folder = trained(*KINDS[kind])
    predictor = mtl.load(folder)
    command(folder, "--format", "safetensors", "--out", tmp_path / "model")
    again = mtl.load(tmp_path / "model")
    raws, _ = raw_inputs(predictor, folder, 3)
    assert again(raws) == predictor(raws) and again.classes == predictor.classes
    assert again.step == predictor.step and (tmp_path / "model" / "config.yaml").is_file()
    card = (tmp_path / "model" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["library_name"] == "mtl" and "license" in head
    assert all(f"| {task} |" in card for task in predictor.tasks) and "On the test split" in card


def test_a_folder_names_no_code_of_its_own(trained, tmp_path):
    command(trained("table"), "--format", "safetensors", "--out", tmp_path / "model")
    file = tmp_path / "model" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    mtl.load(tmp_path / "model", device="cpu")
    config["backbone"] = {"_target_": "os.mkdir", "path": str(tmp_path / "made")}
    file.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"names os\.mkdir, and a checkpoint by itself may name classes of mtl, torch"):
        mtl.load(tmp_path / "model", device="cpu")
    assert not (tmp_path / "made").exists()


def test_the_card_has_the_mean_of_several_seeds(trained, tmp_path):
    runs = [trained("image_table", f"seed={seed}") for seed in (0, 1, 2)]
    command(runs[0], "--format", "safetensors", "--out", tmp_path / "model", "--also", *runs[1:])
    values = [json.loads((run / "summary.json").read_text())["test"]["size/abs_err"] for run in runs]
    line = next(line for line in (tmp_path / "model" / "README.md").read_text().splitlines() if "size/abs_err" in line)
    shown, half = (float(text.strip("| ")) for text in line.split("size/abs_err |")[1].split("±"))
    # Student's t for two degrees of freedom
    expected = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)
    assert shown == pytest.approx(np.mean(values), rel=1e-3) and half == pytest.approx(expected, rel=0.06)


class Reading(nn.Module):
    """A head with a branch that depends on a number, which no exporter can trace."""

    def __init__(self):
        super().__init__()
        self.linear = nn.LazyLinear(3)

    def forward(self, z):
        return self.linear(z) if z.sum().item() > -1e9 else z


def test_a_module_that_cannot_be_exported_is_named(trained, tmp_path, monkeypatch):
    folder = trained("image_table")
    predictor = mtl.load(folder, device="cpu")
    predictor.model.heads["colour"] = nn.Sequential(Reading())
    with torch.no_grad():
        predictor.model(raw_inputs(predictor, folder, 1)[1][0])  # the lazy layer finds its width
    with pytest.raises(ValueError, match=r"^heads\.colour\.0 \(Reading\) cannot be exported: ") as caught:
        written.write_program(predictor, "pt2", tmp_path / "model.pt2")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_file_that_answers_otherwise_is_not_kept(trained, tmp_path, monkeypatch):
    predictor = mtl.load(trained("image_table"), device="cpu")
    write, run = written.FORMATS["pt2"]
    monkeypatch.setitem(written.FORMATS, "pt2", (write, lambda *given: [own + 0.01 for own in run(*given)]))
    with pytest.raises(ValueError, match=r"would answer otherwise than the model: by 0\.0\d+, where 0\.0001 is"):
        written.write_program(predictor, "pt2", tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


MISTAKES = {
    "no run": (["nothing"], "There is no checkpoint nothing."),
    "ending": (["{run}", "--out", "model.bin"], "--out model.bin must end in .pt2."),
    "exists": (["{run}", "--out", "{run}/old.pt2"], "old.pt2 exists; --overwrite replaces it."),
    "folder": (["{run}", "--out", "no/model.pt2"], "no for model.pt2."),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_without_torch(tmp_path, name):
    (tmp_path / "old.pt2").touch()
    arguments, sentence = MISTAKES[name]
    given = [argument.format(run=tmp_path) for argument in arguments]
    code = "import sys; from mtl import export\ntry: export.main()\nfinally: assert 'torch' not in sys.modules"
    environment = {"PYTHONPATH": str(Path(mtl.__file__).parents[1]), "PATH": ""}
    ended = subprocess.run(
        [sys.executable, "-c", code, *given, "--format", "pt2"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1 and ended.stderr.startswith("mtl-export: ") and sentence in ended.stderr
    assert ended.stderr.count("\n") == 1 and [own.name for own in tmp_path.iterdir()] == ["old.pt2"]


def test_a_library_that_is_missing_and_a_folder_of_others(tmp_path, monkeypatch):
    given = export._parser().parse_args([str(tmp_path), "--format", "onnx"])
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^--format onnx needs onnx and onnxscript and onnxruntime: pip install"):
        export._check(given)
    monkeypatch.undo()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").touch()
    given = ["--format", "safetensors", "--out", str(tmp_path / "model"), "--overwrite"]
    with pytest.raises(ValueError, match=r"holds mine\.txt, which mtl-export has not written"):
        export._check(export._parser().parse_args([str(tmp_path), *given]))
