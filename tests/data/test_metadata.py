"""What a checkpoint says of the data: for every data set, and every kind of difference."""

import inspect
import io
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mtl.data.celeba import CelebA
from mtl.data.cityscapes import Cityscapes
from mtl.data.digits import Digits
from mtl.data.domain_tables import DomainTables
from mtl.data.flights import Flights
from mtl.data.image_table import ImageTable
from mtl.data.metadata import describe, meaning_changes, split_changes
from mtl.data.multimnist import MultiMNIST
from mtl.data.nyuv2 import NYUv2
from mtl.data.office import Office
from mtl.data.pascal_context import PascalContext
from mtl.data.paws_x import PawsX
from mtl.data.qm9 import QM9
from mtl.data.relatedness import Relatedness
from mtl.data.scenes import Scenes
from mtl.data.stdlib import Stdlib
from mtl.data.table import Table
from mtl.data.taskonomy import Taskonomy
from mtl.data.toy import Toy

OF_FILES = {
    "celeba": CelebA, "cityscapes": Cityscapes, "flights": Flights, "image_table": ImageTable, "multimnist": MultiMNIST,
    "nyuv2": NYUv2, "pascal_context": PascalContext, "paws_x": PawsX, "qm9": QM9, "taskonomy": Taskonomy,
}  # fmt: skip


@pytest.fixture
def made(fixture_root, tmp_path):
    """A data set by its name, of its fixture or of another folder."""

    def make(name, root=None, **arguments):
        if name == "stdlib":
            return Stdlib(path=str(root or texts(tmp_path / "texts")), context=16, vocabulary=300, **arguments)
        if name == "table":
            return Table(str(root or fixture_root(name)), ["basket", "amount"], **arguments)
        if name == "domain_tables":
            files = {"bonn": "bonn.csv", "ulm": "ulm.csv"}
            return DomainTables(files, "price", str(root or fixture_root(name)), **arguments)
        if name == "office":
            return Office(str(root or fixture_root(name)), ["amazon", "dslr", "webcam"], 31, image_size=16, **arguments)
        if name in OF_FILES:
            return OF_FILES[name](str(root or fixture_root(name)), **arguments)
        return {"digits": Digits, "relatedness": Relatedness, "scenes": Scenes, "toy": Toy}[name](**arguments)

    return make


def texts(folder):
    if not folder.exists():
        folder.mkdir()
        for i in range(40):
            (folder / f"{i:02}.txt").write_text(f"file {i}: " + "the cat sat on the mat, and so it is. " * 5)
    return folder


@pytest.mark.parametrize(
    "name", [*OF_FILES, "office", "table", "domain_tables", "stdlib", "digits", "relatedness", "scenes", "toy"]
)
def test_every_data_set_is_described_in_what_a_checkpoint_holds_and_can_be_read_so_again(made, name):
    data = made(name)
    description = describe(data)
    file = io.BytesIO()
    torch.save(description, file)
    file.seek(0)
    stored = torch.load(file, weights_only=True)
    takes = "metadata" in inspect.signature(type(data)).parameters
    again = describe(made(name, **({"metadata": stored["metadata"]} if takes else {})))
    assert meaning_changes(stored, again) == split_changes(stored, again) == []
    assert {split: part["size"] for split, part in stored["splits"].items()} == {
        split: len(getattr(data, split)) for split in ("train", "val", "test")
    }
    if name not in ("toy", "scenes"):
        parts = stored["splits"].values()
        assert all(part["names"] is not None or part["digest"] for part in parts), "it is told from other data"


def split(names, digest="x", size=None):
    made = SimpleNamespace(names=names, digest=digest)
    return type("Split", (), {"__len__": lambda self: size or len(names), **vars(made)})()


def data(train="abcd", val="ef", test="gh", digest="x", **meaning):
    parts = {"train": split(list(train)), "val": split(list(val)), "test": split(list(test), digest)}
    plain = dict(targets=("t",), kinds={"t": "class"}, input_info={"image_size": 8}, metadata={}) | meaning
    return describe(SimpleNamespace(**plain, **parts))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(train="abcde", val="f"), ["1 of 5 samples of train were in val", "2 samples and has 1: 0 are new, 1"]),
        (dict(test="ghd"), ["1 of 3 samples of test were in train"]),
        (dict(test="ghx"), ["test had 2 samples and has 3: 1 are new, 0 are not in it any more"]),
        (dict(train="abc"), ["train had 4 samples and has 3: 0 are new, 1 are not in it any more"]),
        (dict(train="abdc"), ["the samples of train are in another order"]),
        (dict(digest="y"), ["labels of test differ"]),
        (dict(metadata={"words": ["cat"]}), ["data.metadata.words was nothing and is ['cat']"]),
        (dict(input_info={"image_size": 9}), ["data.input_info.image_size was 8 and is 9"]),
        (dict(kinds={"t": "value"}), ["data.kinds.t was class and is value"]),
        (dict(targets=("t", "u")), ["data.targets has the new 'u'"]),
        ({}, []),
    ],
)
def test_every_difference_is_named(changed, words):
    before, now = data(), data(**changed)
    changes = meaning_changes(before, now) + split_changes(before, now)
    assert len(changes) >= len(words) and all(any(w in change for change in changes) for w in words), changes
    assert bool(changes) == bool(words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (["a", "b"], ["a", "c"], "lacks 'b' and has the new 'c'"),
        (["a", "b"], ["b", "a"], "was ['a', 'b'] and is ['b', 'a']"),
        (np.array([1.5, 2]), [1.5, 3.0], "was [1.5, 2.0] and is [1.5, 3.0]"),
        (torch.zeros(2), torch.ones(2), "was a tensor [2] and is a tensor [2]"),
        (list("abcdef"), [], "lacks 'a', 'b', 'c' and 3 more"),
    ],
)
def test_what_a_data_set_has_learnt_is_compared_by_its_parts(old, new, words):
    changes = meaning_changes(data(metadata={"m": {"n": old}}), data(metadata={"m": {"n": new}}))
    assert changes == [f"data.metadata.m.n {words}"]


def test_what_a_checkpoint_cannot_hold_is_named():
    with pytest.raises(ValueError, match=r"data\.metadata\.pattern has a Pattern"):
        data(metadata={"pattern": [re.compile("x")]})


# ------------------------------------------------------------------- data sets of files that are changed


def test_an_added_text_moves_no_other_and_keeps_the_vocabulary(made, tmp_path):
    before = made("stdlib")
    folder = texts(tmp_path / "texts")
    (folder / "00a.txt").write_text("zq" * 500)
    again = made("stdlib", metadata=describe(before)["metadata"])
    assert split_changes(describe(before), describe(again)) == []
    anew = made("stdlib")
    assert meaning_changes(describe(before), describe(anew)), "the negative control: learnt anew, they are others"
    (folder / "00.txt").write_text("file 0: another text. " * 20)
    changes = split_changes(describe(before), describe(made("stdlib", metadata=describe(before)["metadata"])))
    assert len(changes) == 1 and changes[0].startswith("train had 224 samples and has ")


def test_office_knows_the_object_of_a_class(made, fixture_root, tmp_path):
    before = describe(made("office"))
    root = shutil.copytree(fixture_root("office"), tmp_path / "office")
    for file in root.glob("*_*.txt"):  # every class becomes the next one
        lines = [line.split() for line in file.read_text().splitlines()]
        file.write_text("".join(f"{path} {(int(label) + 1) % 31}\n" for path, label in lines))
    assert any("data.metadata.classes" in change for change in meaning_changes(before, describe(made("office", root))))
    with pytest.raises(ValueError, match=r"as class \d+, which was class_\d+ when the model learnt"):
        made("office", root, metadata=before["metadata"])


def test_the_range_of_arrays_is_the_one_that_was_learnt(made, fixture_root, tmp_path):
    before = describe(made("nyuv2"))
    assert before["metadata"] == {"brightest": 1}
    root = shutil.copytree(fixture_root("nyuv2"), tmp_path / "nyuv2")
    first = root / "train" / "image" / "0.npy"
    np.save(first, (np.load(first) * 255).astype(np.uint8))
    assert meaning_changes(before, describe(made("nyuv2", root))) == ["data.metadata.brightest was 1 and is 255"]
    kept = made("nyuv2", root, metadata=before["metadata"])
    assert torch.equal(kept.test[0][0], made("nyuv2").test[0][0])
    assert not torch.equal(made("nyuv2", root).test[0][0], kept.test[0][0]), "the negative control"


def test_a_sample_that_changes_its_split_is_told(made, fixture_root, tmp_path):
    root = shutil.copytree(fixture_root("celeba"), tmp_path / "celeba")
    before = describe(made("celeba"))
    file = root / "Eval" / "list_eval_partition.txt"
    file.write_text(file.read_text().replace("000001.jpg 0", "000001.jpg 2"))
    changes = split_changes(before, describe(made("celeba", root)), ["test"])
    assert changes == ["1 of 4 samples of test were in train"]
