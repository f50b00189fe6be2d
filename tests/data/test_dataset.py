"""A torch data set of one's own: its split, what it tells the backbone, and its mistakes in one sentence each."""

import json
import re

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from support.own_parts import OwnImages
from torch.utils.data import Dataset, IterableDataset

from mtl.config import check, load
from mtl.config.build import build
from mtl.data.dataset import OwnDataset
from mtl.data.loader import Batches, DataError, sequential
from mtl.errors import ConfigError
from mtl.train import train


class Blots(Dataset):
    def __init__(self, size=40, shape=(3, 8, 6), form="right"):
        self.size, self.shape, self.form = size, tuple(shape), form

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        image, targets = torch.full(self.shape, float(index)), {"colour": index % 3, "size": torch.tensor([0.1])}
        forms = {"right": (image, targets), "pair": (image, 2), "three": (image, 2, 3), "one": image,
                 "other": (image, {"colour": 1}), "empty": (image, {}), "nothing": (None, targets),
                 "no label": (image, {"colour": None}), "picture": (Image.new("RGB", (8, 6)), targets)}  # fmt: skip
        return forms[self.form]


class NoItem(Dataset):
    def __len__(self):
        return 3


class Stream(IterableDataset):
    def __iter__(self):
        yield from ()


def numbers(split):
    return [int(inputs[0, 0, 0]) for inputs, _ in (split[i] for i in range(len(split)))]


def test_every_sample_is_in_one_split_which_its_own_seed_decides():
    data = OwnDataset(Blots())
    parts = [numbers(split) for split in (data.train, data.val, data.test)]
    assert list(map(len, parts)) == [28, 6, 6] and sorted(n for part in parts for n in part) == list(range(40))
    torch.manual_seed(1)
    again = OwnDataset(Blots())
    assert [numbers(split) for split in (again.train, again.val, again.test)] == parts
    assert numbers(OwnDataset(Blots(), split_seed=1).val) != parts[1], "negative control"


def test_a_split_of_its_own_is_not_held_out():
    data = OwnDataset(Blots(), val_dataset=Blots(5), test_dataset=Blots(7))
    assert [len(split) for split in (data.train, data.val, data.test)] == [40, 5, 7]
    assert [len(split) for split in (OwnDataset(Blots(), test_dataset=Blots(7)).train,)] == [34]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 8, 6), {"in_channels": 3, "image_size": [8, 6]}),
        ((1, 8, 8), {"in_channels": 1, "image_size": 8}),
        ((5,), {"in_features": 5}),
        ((2, 5), {}),
    ],
)
def test_what_the_backbone_is_told(shape, expected):
    assert OwnDataset(Blots(shape=shape)).input_info == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dataset": Stream()}, r"dataset \(Stream\) has no __len__"),
        ({"dataset": NoItem()}, r"dataset \(NoItem\) has no __getitem__: it must be a map-style data set"),
        ({"dataset": Blots(0)}, "has no sample"),
        (
            {"dataset": Blots(form="nothing")},
            r"dataset \(Blots\): the input of the first sample is a NoneType, and must",
        ),
        (
            {"dataset": Blots(form="no label")},
            "the target colour of the first sample is a NoneType, .* a missing label is",
        ),
        ({"dataset": Blots(form="picture")}, r"is a PIL.Image.Image, .* pil_to_tensor\(image\).float\(\) / 255"),
        ({"dataset": Blots(form="one")}, "the first sample is a Tensor; a sample is"),
        ({"dataset": Blots(form="three")}, "the first sample is a tuple of 3; a sample is"),
        ({"dataset": Blots(form="pair")}, "the targets of the first sample are a int; a sample is"),
        ({"dataset": Blots(form="empty")}, "the targets of the first sample are a dict of 0"),
        ({"dataset": Blots(), "val_dataset": Blots(form="other")}, "val_dataset has the targets colour, but dataset"),
        ({"dataset": Blots(), "test_dataset": Blots(shape=(3, 8, 8))}, r"test_dataset has inputs of shape \[3, 8, 8\]"),
        ({"dataset": Blots(), "validation": 1.5}, "validation=1.5 must be from 0 to below 1"),
        ({"dataset": Blots(2), "test": 0.5}, "leave none of 2 samples"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, words):
    with pytest.raises(ValueError, match=words) as caught:
        OwnDataset(**arguments)
    assert "\n" not in str(caught.value)


def test_the_example_trains(tmp_path, monkeypatch):
    """The YAML of the docstring, with the data set of this file."""
    import textwrap

    from hydra import initialize_config_dir

    from mtl.config.instantiate import CONF

    text = textwrap.dedent(OwnDataset.__doc__.split("blots.yaml``::\n")[1].split("``mtl-train")[0])
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "blots.yaml").write_text(text.strip() + "\n")
    (tmp_path / "mine.py").write_text("from support.own_parts import OwnImages as Blots\n")
    monkeypatch.syspath_prepend(tmp_path)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = load([f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "+experiment=blots", "trainer.max_steps=1",
                    "data.batch_size=4", "tracker=jsonl", "device=cpu"])  # fmt: skip
    check(cfg)
    parts, _ = build(cfg)
    assert [(task.name, list(task.metrics)) for task in parts.tasks] == [("colour", ["accuracy"]), ("size", [])]
    train(cfg, tmp_path / "run")
    examples = json.loads((tmp_path / "run" / "examples" / "examples.json").read_text())
    assert {(task, own["kind"]) for e in examples for task, own in e["tasks"].items()} == {
        ("colour", "class"), ("size", "value"),
    }  # fmt: skip
    assert {e["tasks"]["colour"]["target"] for e in examples} <= {"0", "1", "2"}, "no names are known, so the index"
    assert all((tmp_path / "run" / "examples" / e["image"]).is_file() for e in examples)


EXAMPLE = ["data=dataset", "data.dataset._target_=support.own_parts.OwnImages"]
A_HEAD = ["+head@heads.colour=linear", "heads.colour.out_features=3"]
A_LOSS = ["+losses.colour._target_=torch.nn.CrossEntropyLoss"]


def test_the_command_line_alone_names_a_data_set_its_heads_and_its_losses():
    parts, _ = build(load([*EXAMPLE, *A_HEAD, *A_LOSS, "data.batch_size=4", "backbone=mlp", "device=cpu"]))
    assert isinstance(parts.data.train.dataset, OwnImages) and [task.name for task in parts.tasks] == ["colour"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            EXAMPLE[:1],
            "data=dataset needs your torch Dataset, and a head and a loss for each of its targets, as in data.",
        ),
        (EXAMPLE, "heads must name at least one task, as in +head@heads.colour=linear heads.colour.out_features=3."),
        (
            [*EXAMPLE, *A_HEAD],
            "losses must name at least one task, as in +losses.colour._target_=torch.nn.CrossEntropy",
        ),
    ],
)
def test_what_is_missing_on_the_command_line_is_shown(overrides, words):
    with pytest.raises(ConfigError) as caught:
        check(load(overrides))
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("support.own_parts.OwnImage", "support.own_parts has no OwnImage; did you mean OwnImages."),
        ("nobody.OwnImages", "there is no package nobody; code of your own is found in the current folder"),
        ("OwnImages", "its module must stand before it, as in mine.OwnImages."),
    ],
)
def test_a_class_that_is_not_there(target, words):
    with pytest.raises(ConfigError) as caught:
        build(load([*EXAMPLE[:1], f"data.dataset._target_={target}", *A_HEAD, *A_LOSS, "device=cpu"]))
    assert str(caught.value).startswith(f"data.dataset._target_={target} cannot be imported: {words}")


def test_a_class_named_without_its_key():
    cfg = load([*EXAMPLE, *A_HEAD, *A_LOSS, "device=cpu"])
    OmegaConf.set_struct(cfg, False)
    cfg.data.dataset = "mine.Blots"
    with pytest.raises(ConfigError, match=r"is named as data.dataset._target_=mine.Blots\.$"):
        build(cfg)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ({"a": 1, "b": 0.5, "c": torch.tensor([0.5, 1])}, {"a": "class", "b": "value", "c": "value"}),
        ({"a": torch.zeros(8, 6).long(), "b": torch.zeros(1, 8, 6), "c": "red"}, {"a": "segmentation"}),
    ],
)
def test_what_the_examples_show(targets, expected):
    samples = [(torch.zeros(3, 8, 6), targets)] * 9
    assert OwnDataset(samples).kinds == expected
    assert OwnDataset([(torch.zeros(5), targets)] * 9).kinds == {}, "a vector is no image"


def test_channels_that_come_last_are_warned_of(caplog):
    OwnDataset(Blots(shape=(32, 32, 3)))
    assert "is taken for 32 channels of 32×3" in caplog.text
    caplog.clear()
    for shape in ((3, 32, 32), (1, 9, 9), (64, 3, 3)):
        OwnDataset(Blots(200, shape))
    assert not caplog.records


def test_a_split_of_few_samples_is_warned_of(caplog):
    OwnDataset(Blots(60))
    assert [r.getMessage() for r in caplog.records] == [
        f"data: {split} has 9 of the 60 samples, each 11 % of an accuracy; data.{key}=… is the share"
        for split, key in (("val", "validation"), ("test", "test"))
    ]
    caplog.clear()
    OwnDataset(Blots(60), val_dataset=Blots(3), test=0.5)
    assert not caplog.records


# --------------------------------------------------------------------------------- what is met only in sample 137


class Odd(Blots):
    """One sample is not as the others."""

    def __init__(self, kind, index=137):
        super().__init__(200)
        self.kind, self.odd = kind, index

    def __getitem__(self, index):
        image, targets = super().__getitem__(index)
        if index == self.odd:
            if self.kind == "unreadable":
                raise OSError("image file is truncated")
            image = torch.zeros(3, 8, 7) if self.kind == "shape" else image
            other = {"keys": {"color": 1, "size": torch.tensor([0.1])}, "fewer": {"colour": 1},
                     "target": {"colour": 1, "size": torch.zeros(2)}}  # fmt: skip
            targets = other.get(self.kind, targets)
        return image, targets


ODD = {
    "unreadable": r"OSError: image file is truncated \(tests/data/test_dataset.py, line \d+\)",
    "shape": r"the input has the shape \[3, 8, 7\], and in sample \d+ the shape \[3, 8, 6\]; a batch takes one form",
    "target": r"the target size has the shape \[2\], and in sample \d+ the shape \[1\]; a batch takes one form",
    "fewer": r"the target size is missing, and in sample \d+ the shape \[1\]; a batch takes one form \(a missing label",
    "keys": r"the target colour is missing, and in sample \d+ the shape \[\]; a batch takes one form \(a missing label",
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("first", [True, False], ids=["first of its batch", "last of its batch"])
def test_an_odd_sample_is_named_by_its_index_in_the_data_set(kind, first):
    split = OwnDataset(Odd(kind)).train
    place = split.indices.index(137)
    batch = [place, *range(3)] if first else [*range(3), place]
    with pytest.raises(DataError) as caught:
        list(Batches(split, [(0, batch)], 0))
    sentence = str(caught.value).split("\n")[0]
    assert re.fullmatch(rf"train sample 137 cannot be read: {ODD[kind]}.*data.on_error=skip leaves such samples out\.",
                        sentence)  # fmt: skip
    ((inputs, targets),) = list(Batches(split, [(0, batch)], 0, on_error="skip"))
    assert inputs[:, 0, 0, 0].tolist() == split.own_indices(range(3)) and set(targets) == {"colour", "size"}


def test_a_label_out_of_range_is_named_by_its_index_in_the_data_set():
    parts, _ = build(load([*EXAMPLE, *A_HEAD, *A_LOSS, "data.batch_size=4", "backbone=mlp", "device=cpu"]))
    split, labels = parts.data.train, {task.name: task.labels for task in parts.tasks}
    images, targets = split.dataset[split.indices[1]]
    split.dataset = {i: (images, {**targets, "colour": 7 if i == split.indices[1] else 1}) for i in split.indices}
    with pytest.raises(
        DataError, match=rf"target of colour in sample {split.indices[1]} is 7, but its loss takes 0 to"
    ):
        list(Batches(split, sequential(2, 2), 0, labels=labels))


def test_the_first_sample_that_cannot_be_read_is_said_so():
    with pytest.raises(
        ValueError, match=r"dataset \(Odd\): the first sample cannot be read: OSError: image file is trun"
    ):
        OwnDataset(Odd("unreadable", index=0))


@pytest.mark.parametrize(
    "overrides",
    [["data._target_=support.own_parts.OwnImages"], ["data=dataset", "data._target_=support.own_parts.OwnImages"]],
    ids=["in the place of digits", "in the place of the wrapper"],
)  # fmt: skip
def test_a_torch_data_set_in_the_place_of_data_is_told_where_it_goes(overrides):
    with pytest.raises(ConfigError) as caught:
        cfg = load([*overrides, *A_HEAD, *A_LOSS, "device=cpu"])
        check(cfg)
        build(cfg)
    assert "data.dataset._target_=support.own_parts.OwnImages" in str(caught.value)
