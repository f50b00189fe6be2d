"""What a run on images draws: the pixels of each kind, the list of them, and that drawing never fails a run."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mtl.config import check, load
from mtl.config.build import build_parts
from mtl.data.digits import Digits
from mtl.data.office import make_fixture
from mtl.data.scenes import Scenes
from mtl.errors import ConfigError
from mtl.training.examples import draw, write_examples

DENSE = ["data=scenes", "data.image_size=16", "data.size=20", "data.batch_size=2", "device=cpu"]


def listed(folder):
    return json.loads((folder / "examples" / "examples.json").read_text())


def pixels(folder, name):
    with Image.open(folder / "examples" / name) as image:
        return np.array(image)


# ---------------------------------------------------------------------------------------------------- kinds


def test_a_class_has_one_colour_and_no_label_is_black():
    target = torch.tensor([[0, 1, 2], [2, 1, -1]])
    logits = torch.nn.functional.one_hot(target.clamp(0), 3).permute(2, 0, 1).float()
    drawn = draw("segmentation", target, logits, target >= 0)
    a, b = drawn["target"], drawn["prediction"]
    assert a.shape == (2, 3, 3) and a.dtype == np.uint8
    assert (a[1, 2] == 0).all() and (b[1, 2] == b[0, 0]).all()
    assert (a[:, :2] == b[:, :2]).all() and (a[0, 2] == a[1, 0]).all()
    assert len({tuple(c) for c in a.reshape(-1, 3)}) == 4


def test_depths_share_the_targets_scale():
    target = torch.tensor([[[1.0, 2.0, 3.0, 0.0]]])
    prediction = torch.tensor([[[1.0, 9.0, -5.0, 2.0]]])
    drawn = draw("depth", target, prediction, target > 0)
    a, b = drawn["target"][0], drawn["prediction"][0]
    assert (a[3] == 0).all()
    assert (b[0] == a[0]).all() and (b[3] == a[1]).all()
    assert (b[1] == a[2]).all() and (b[2] == a[0]).all()  # beyond the scale: its ends
    assert not (a[0] == a[1]).all()


def test_normals_are_their_axes_as_colours_whatever_their_length():
    target = torch.tensor([[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    prediction = torch.tensor([[[5.0, 0.0]], [[0.0, -2.0]], [[0.0, 0.0]]])
    drawn = draw("normals", target, prediction, (target != 0).any(0))
    assert drawn["target"].tolist() == [[[255, 128, 128], [0, 0, 0]]]
    assert drawn["prediction"].tolist() == [[[255, 128, 128], [128, 0, 128]]]


def test_masks_are_probabilities():
    drawn = draw("mask", torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[-100.0, 0.0]]]))
    assert drawn["target"].tolist() == [[[0, 0, 0], [255, 255, 255]]]
    assert drawn["prediction"].tolist() == [[[0, 0, 0], [128, 128, 128]]]


def test_classes_attributes_and_values_are_text():
    logits = torch.tensor([0.1, 2.0, 1.0])
    assert draw("class", torch.tensor(1), logits) == {"target": "1", "prediction": "1"}
    assert draw("class", torch.tensor(2), logits) == {"target": "2", "prediction": "1 (wrong)"}
    attributes = draw("class", torch.tensor([1.0, 0.0]), torch.tensor([-0.2, -0.3]))
    assert attributes == {"target": "1, 0", "prediction": "0, 0 (wrong)"}
    value = draw("value", torch.tensor([1.25]), torch.tensor([0.123456]))
    assert value == {"target": "1.25", "prediction": "0.1235"}


def test_classes_have_their_names_and_numbers_their_units():
    names, logits = ("cat", "dog"), torch.tensor([0.1, 2.0])
    assert draw("class", torch.tensor(0), logits, None, names) == {"target": "cat", "prediction": "dog (wrong)"}
    unlabelled = draw("class", torch.tensor(-100), logits, torch.tensor(False), names)
    assert unlabelled == {"target": "–", "prediction": "dog"}
    traits = torch.tensor([1.0, torch.nan, 0.0]), torch.tensor([3.0, 3.0, -3.0]), torch.tensor([True, False, True])
    assert draw("class", *traits, ("tame", "old", "wild")) == {"target": "tame, old?", "prediction": "tame, old"}
    assert draw("class", torch.zeros(2), -torch.ones(2), None, ("tame", "wild"))["target"] == "none"
    numbers = draw("value", torch.tensor([0.5, torch.nan]), torch.tensor([-1.0, 1.0]), scale=((20, 3), (4, 2)))
    assert numbers == {"target": "22, –", "prediction": "16, 5"}


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="kind=map must be one of segmentation"):
        draw("map", torch.zeros(1, 2, 2), torch.zeros(1, 2, 2))


# ----------------------------------------------------------------------------------------------------- files


def test_a_run_on_scenes_leaves_its_pictures(train_tiny):
    folder = train_tiny(*DENSE, "trainer.examples=3", "trainer.max_steps=1", "trainer.val_every=1")
    entries = listed(folder)
    assert [(e["index"], e["split"]) for e in entries] == [(0, "test"), (1, "test"), (3, "test")]
    images, targets = Scenes(image_size=16, size=20).test.batch([3], 0)
    entry = entries[2]
    assert entry["tasks"]["depth"]["kind"] == "depth" and set(entry["tasks"]) == {"segmentation", "depth", "normals"}
    normals = pixels(folder, entry["tasks"]["normals"]["target"])
    expected = ((targets["normals"][0] / 2 + 0.5) * 255).permute(1, 2, 0).numpy()
    assert np.abs(normals - expected).max() <= 1
    image = pixels(folder, entry["image"]) / 255
    original = images[0].permute(1, 2, 0).numpy()
    assert np.corrcoef(image.ravel(), original.ravel())[0, 1] > 0.999
    files = {e["image"] for e in entries} | {
        what[name] for e in entries for what in e["tasks"].values() for name in ("target", "prediction")
    }
    assert files | {"examples.json"} == {path.name for path in (folder / "examples").iterdir()}
    assert len(files) == 3 * 7


def test_digits_have_text_that_is_what_the_model_says(tmp_path):
    parts = build_parts(load(["device=cpu"]))
    write_examples(tmp_path, parts.engine, parts.data, parts.device, 2)
    data = Digits()
    first, last = listed(tmp_path)
    assert (first["index"], last["index"]) == (0, len(data.test) - 1)
    images, targets = data.test.batch([0], 0)
    with torch.no_grad():
        predictions = parts.model.eval()(images)
    for task in ("left", "right"):
        expected = {"kind": "class", "target": str(targets[task].item())}
        found = str(predictions[task].argmax().item())
        mark = "" if found == expected["target"] else " (wrong)"
        assert first["tasks"][task] == expected | {"prediction": found + mark}
    assert pixels(tmp_path, first["image"]).shape == (32, 32, 3)


def test_each_domains_image_is_an_example_of_its_own(tmp_path):
    make_fixture(tmp_path / "data")
    parts = build_parts(load(["data=office", f"data.root={tmp_path}/data", "data.image_size=16", "device=cpu"]))
    write_examples(tmp_path, parts.engine, parts.data, parts.device, 2)
    entries = listed(tmp_path)
    assert [list(e["tasks"]) for e in entries] == [["amazon"], ["dslr"], ["webcam"], ["amazon"]]
    assert len({e["image"] for e in entries}) == 4


def test_a_task_without_a_label_is_left_out(tmp_path):
    parts = build_parts(load(DENSE))
    batch = parts.data.test.batch

    def without_depth(indices, epoch):
        images, targets = batch(indices, epoch)
        return images, targets | {"depth": 0 * targets["depth"]}

    parts.data.test.batch = without_depth
    write_examples(tmp_path, parts.engine, parts.data, parts.device, 1)
    assert set(listed(tmp_path)[0]["tasks"]) == {"segmentation", "normals"}


def test_what_cannot_be_drawn_is_a_warning_and_no_failure(tmp_path, caplog):
    parts = build_parts(load(DENSE))
    (tmp_path / "examples").write_text("a file where the folder should be")
    parts.data.kinds["depth"] = "depths"
    for folder, words in ((tmp_path, "FileExistsError"), (tmp_path / "missing", "FileNotFound"), (None, "kind=depths")):
        caplog.clear()
        (tmp_path / "empty").mkdir(exist_ok=True)
        write_examples(folder or tmp_path / "empty", parts.engine, parts.data, parts.device, 1)
        assert [r.levelname for r in caplog.records] == ["WARNING"]
        assert "No pictures of examples" in caplog.text and words in caplog.text
    assert parts.model.training


def test_there_are_none_where_none_are_asked_for_or_no_kind_is_known(tmp_path):
    parts = build_parts(load(["device=cpu"]))
    write_examples(tmp_path, parts.engine, parts.data, parts.device, 0)
    del parts.data.kinds
    write_examples(tmp_path, parts.engine, parts.data, parts.device, 8)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"trainer.examples=-1 must be 0 or more"):
        check(load(["trainer.examples=-1"]))


def test_a_class_that_is_predicted_as_one_number_is_shown_as_a_number():
    target, number, logits = torch.tensor(2), torch.tensor([1.5]), torch.tensor([0.0, 3.0, 1.0])
    assert draw("class", target, number) == {"target": "2", "prediction": "1.5"}
    assert draw("class", target, logits)["prediction"] == "1 (wrong)", "negative control"
