"""mtl.load: the run's own model and transform from one file, in the terms of its user."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import mtl
from mtl.config.build import build_parts
from mtl.runs import checkpoint
from mtl.runs.files import read_yaml


def of_its_own_data(folder):
    """The parts that the run's configuration and data files give, with the best weights: what mtl-eval measures."""
    from omegaconf import OmegaConf

    content = checkpoint.load(folder / "checkpoints" / "best.pt")
    parts = build_parts(OmegaConf.create(read_yaml(folder / "config.yaml")), content["data"])
    parts.model.load_state_dict(content["ema"] or content["model"])
    return parts, parts.model.eval()


def test_the_answers_are_those_of_the_runs_own_model_and_data(trained):
    folder = trained("image_table")
    parts, model = of_its_own_data(folder)
    predictor = mtl.load(folder)
    files = [folder.parent / "data" / name for name in parts.data.test.names]
    with torch.no_grad():
        outputs = model(torch.stack([parts.data.test[i][0] for i in range(len(files))]))
    expected = outputs["colour"].softmax(1).numpy()
    mean, std = parts.data.scales["size"]
    sizes = outputs["size"].numpy()[:, 0] * np.float64(std) + np.float64(mean)
    said = predictor(files)
    assert [own["colour"]["class"] for own in said] == [["blue", "green", "red"][i] for i in expected.argmax(1)]
    assert np.array_equal([list(own["colour"]["probabilities"].values()) for own in said], expected)
    assert np.allclose([own["size"] for own in said], sizes, rtol=1e-12)
    with Image.open(files[0]) as image:
        one = predictor(image)
    assert one["size"] == pytest.approx(sizes[0], rel=1e-6) and one["colour"]["class"] == said[0]["colour"]["class"]
    assert predictor.classes == {"colour": ["blue", "green", "red"], "round": [0, 1], "striped": [0, 1]}
    assert predictor.units == {"size": None} and not predictor.model.training
    assert predictor.preprocess.normalize.mean == list(parts.data.normalize.mean)
    assert torch.equal(predictor.preprocess(files[0]), parts.data.test[0][0])


def test_one_file_predicts_without_the_run_and_its_data(trained, tmp_path):
    folder = trained("image_table")
    data = folder.parent / "data"
    expected = mtl.load(folder)(data / "images" / "3.png")
    alone = shutil.copy(folder / "checkpoints" / "best.pt", tmp_path / "alone.pt")
    picture = shutil.copy(data / "images" / "3.png", tmp_path / "picture.png")
    hidden = data.rename(data.with_name("hidden"))
    try:
        assert mtl.load(alone)(picture) == expected
    finally:
        hidden.rename(data)


def test_the_averaged_weights_count_and_the_last_ones_on_request(trained):
    folder = trained("image_table", "trainer.ema=0.5", "trainer.max_steps=12")
    content = checkpoint.load(folder / "checkpoints" / "last.pt")
    found = mtl.load(folder, which="last").model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in content["ema"].items())
    assert any(not torch.equal(found[name], value) for name, value in content["model"].items()), "the negative control"
    assert mtl.load(folder, which="last").step == content["step"]
    assert mtl.load(folder).step == checkpoint.load(folder / "checkpoints" / "best.pt")["step"]


def test_one_head_alone(trained):
    folder = trained("image_table")
    image = folder.parent / "data" / "images" / "0.png"
    whole, alone = mtl.load(folder)(image), mtl.load(folder, tasks=["colour"])
    assert alone(image) == {"colour": whole["colour"]} and list(alone.model.heads) == ["colour"]


def test_loading_draws_no_random_numbers_of_the_caller(trained):
    folder = trained("image_table")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    mtl.load(folder)
    assert torch.equal(torch.rand(3), expected)


def test_many_rows_are_prepared_at_once_where_the_preprocess_can(trained):
    predictor = mtl.load(trained("image_table"))

    class Rows:
        takes = "row"

        def __call__(self, row):
            return torch.full((3, 16, 16), float(row["x"]))

    def batch(rows):
        return torch.stack([Rows()(row) for row in rows.to_dict("records")])

    predictor.preprocess = Rows()
    table = pd.DataFrame({"x": [0.1, 0.2, 0.3]})
    one_by_one = predictor(table)
    predictor.preprocess.batch = batch
    assert predictor(table) == one_by_one and len(one_by_one) == 3
    assert predictor({"x": 0.1})["size"] == pytest.approx(one_by_one[0]["size"], rel=1e-5)


def altered(folder, tmp_path, **changes):
    content = checkpoint.load(folder / "checkpoints" / "best.pt")
    content["data"] = {**content["data"], **changes}
    content["data"] = {key: value for key, value in content["data"].items() if value != "gone"}
    checkpoint.save(tmp_path / "altered.pt", content)
    return tmp_path / "altered.pt"


def test_an_older_checkpoint_says_what_it_lacks(trained, tmp_path):
    from mtl.evaluate import evaluate_checkpoint

    new = ("sample", "preprocess", "class_names", "scales", "units", "inputs_per_task")
    old = altered(trained("image_table"), tmp_path, **dict.fromkeys(new, "gone"))
    with pytest.raises(ValueError, match=r"altered\.pt: its description of the data is of an older version, and lacks"):
        mtl.load(old)
    assert evaluate_checkpoint(old, "test")["colour/accuracy"] >= 0, "mtl-eval reads it"


def test_a_preprocess_names_trusted_code_only(trained, tmp_path):
    evil = altered(trained("image_table"), tmp_path, preprocess={"_target_": "os.system", "command": "true"})
    with pytest.raises(ValueError, match=r"names os\.system, and a checkpoint by itself may name classes of mtl"):
        mtl.load(evil)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(which="first"), "which=first must be best or last."),
        (dict(precision="64"), "precision=64 must be one of 32, bf16, fp16."),
        (dict(tasks=["color"]), "tasks=color is no task of the model; did you mean colour."),
        (dict(device="tpu"), "device=tpu must be auto, cpu"),
    ],
    ids=["which", "precision", "task", "device"],
)
def test_a_mistake_is_one_sentence(trained, arguments, words):
    with pytest.raises(ValueError) as caught:
        mtl.load(trained("image_table"), **arguments)
    assert words in str(caught.value)
