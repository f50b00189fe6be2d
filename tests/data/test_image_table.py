"""A folder of images with a table: inferred kinds, missing cells, standardisation, and the command."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mtl import losses
from mtl.config import check, load
from mtl.config.build import build
from mtl.data.columns import IGNORED, infer
from mtl.data.image_table import ImageTable
from mtl.data.loader import Batches, sequential
from mtl.data.metadata import describe, meaning_changes
from mtl.data.tables import read_table
from mtl.data.target_names import TAKEN
from mtl.train import train

N = 30


@pytest.fixture
def folder(tmp_path):
    """Images of one grey each, and a function that writes a table of further columns for them."""
    for i in range(N):
        Image.fromarray(np.full((6, 8, 3), 8 * i, np.uint8)).save(tmp_path / f"{i:03d}.png")

    def write(name="labels.csv", **columns):
        table = pd.DataFrame({"file": [f"{i:03d}.png" for i in range(N)], **columns})
        table.to_csv(tmp_path / name, index=False) if name.endswith("csv") else table.to_parquet(tmp_path / name)
        return str(tmp_path)

    return write


def every(data, target):
    """The target of every row, by its image's name, over all splits."""
    found = {}
    for split in (data.train, data.val, data.test):
        found |= {item[0]: split[i][1][target] for i, item in enumerate(split._items)}
    return [found[name] for name in sorted(found)]


NUMBERS = [float(i) for i in range(N)]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["red", "green", "blue"] * 10, "class"),
        ([True, False, True] * 10, "class"),
        ([True, None, False] * 10, "class"),
        ([3, 4, 5] * 10, "class"),
        ([3.0, None, 5.0] * 10, "class"),
        (list(range(N)), "number"),
        ([0.5, 1.5, 2.5] * 10, "number"),
        ([0.5, None, 2.5] * 10, "number"),
        (["None", "NA", "sun"] * 10, "class"),
    ],
)
@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
def test_what_a_column_is_taken_for(folder, values, kind, name):
    root = folder(name, a=values)
    assert infer(read_table(Path(root) / name)[0], ["a"], Path(name)) == kind
    data = ImageTable(root, name)
    assert data.columns["a"].kind == kind and data.targets == ("a",)
    missing = [value is None for value in values]
    marks = [bool((t == -100 if kind == "class" else t.isnan()).all()) for t in every(data, "a")]
    assert marks == missing


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        ([0, 1, 1] * 10, [1, 0, 0] * 10, "labels"),
        ([True, False, False] * 10, [0, None, 1] * 10, "labels"),
        ([True, None, False] * 10, [True, True, False] * 10, "labels"),
        ([0, 1, 2] * 10, [0, 1, 1] * 10, "number"),
        (NUMBERS, [0.5, None, 1.5] * 10, "number"),
    ],
)
def test_what_several_columns_are_taken_for(folder, a, b, kind):
    data = ImageTable(folder(a=a, b=b), targets={"both": ["a", "b"]})
    assert data.columns["both"].kind == kind and data.columns["both"].width == 2
    values = torch.stack(every(data, "both"))
    mean, std = (data.columns["both"].mean, data.columns["both"].std) if kind == "number" else ((0, 0), (1, 1))
    expected = np.array([[np.nan if v is None else (float(v) - mean[k]) / std[k] for k, v in enumerate(row)]
                         for row in zip(a, b, strict=True)])  # fmt: skip
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


def test_classes_are_in_order_and_may_look_like_numbers_or_none(folder):
    words = ImageTable(folder(a=["None", "NA", "sun"] * 10))
    assert words.columns["a"].classes == ("NA", "None", "sun")
    assert [int(t) for t in every(words, "a")[:3]] == [1, 0, 2]
    numbers = ImageTable(folder(a=[10, None, 9] * 10))
    assert numbers.columns["a"].classes == (9, 10) and str(numbers.columns["a"]) == "class of 9, 10"
    assert [int(t) for t in every(numbers, "a")[:3]] == [1, -100, 0]


def test_a_kind_that_is_given_comes_before_what_it_seems_to_be(folder):
    root = folder(a=[1, 2, 5] * 10, b=[0.5, 1.5, 0.5] * 10, c=[0, 1, 1] * 10)
    data = ImageTable(root, kinds={"a": "number", "b": "class", "c": "labels"})
    assert [data.columns[k].kind for k in "abc"] == ["number", "class", "labels"]
    assert data.columns["b"].classes == (0.5, 1.5) and every(data, "c")[1].tolist() == [1.0]


def test_numbers_are_standardised_by_the_training_rows_and_measured_in_their_own_unit(folder):
    values = [None if i % 7 == 3 else 100 + 3.7 * i for i in range(N)]
    data = ImageTable(folder(a=values))
    by_name = {f"{i:03d}.png": value for i, value in enumerate(values)}
    train = np.array([by_name[name] for name, _ in data.train._items if by_name[name] is not None])
    assert data.columns["a"].mean == pytest.approx((train.mean(),)) and data.columns["a"].std == pytest.approx(
        (train.std(),)
    )
    everything = np.array([value for value in values if value is not None])
    assert data.columns["a"].mean != pytest.approx((everything.mean(),)), "the negative control: not of all rows"
    scaled = torch.stack([t["a"] for _, t in (data.train[i] for i in range(len(data.train)))])
    assert scaled.nanmean().abs() < 1e-5 and scaled[~scaled.isnan()].std(correction=0).item() == pytest.approx(
        1, abs=1e-5
    )
    metrics = data.metrics("a")
    errors = []
    for inputs, targets in Batches(data.test, sequential(len(data.test), 2), 0):
        prediction = torch.zeros(len(inputs), 1)  # the mean of the training rows, in the table's own unit
        for metric in metrics.values():
            metric.update(prediction, targets["a"])
    errors = [by_name[name] - train.mean() for name, _ in data.test._items if by_name[name] is not None]
    assert metrics["abs_err"].compute().item() == pytest.approx(np.abs(errors).mean(), rel=1e-5)
    assert metrics["rmse"].compute().item() == pytest.approx(np.sqrt(np.square(errors).mean()), rel=1e-5)


def test_several_numbers_have_metrics_of_their_own(folder):
    data = ImageTable(folder(**{"x pos": NUMBERS, "y": [10 * v for v in NUMBERS]}), targets={"where": ["x pos", "y"]})
    metrics = data.metrics("where")
    assert set(metrics) == {"abs_err_x_pos", "rmse_x_pos", "abs_err_y", "rmse_y"}
    for metric in metrics.values():
        metric.update(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.0]]))
    assert metrics["abs_err_y"].compute().item() == pytest.approx(10 * metrics["abs_err_x_pos"].compute().item())


def test_images_may_be_called_by_numbers_in_any_column(folder, tmp_path):
    root = folder(a=[0, 1, 2] * 10)
    pd.DataFrame({"a": [0, 1, 2] * 10, "id": [f"{i:03d}" for i in range(N)]}).to_csv(
        tmp_path / "labels.csv", index=False
    )
    for i in range(N):
        (tmp_path / f"{i:03d}.png").rename(tmp_path / f"{i:03d}")
    data = ImageTable(root, image="id")
    assert data.targets == ("a",) and len(every(data, "a")) == N
    pd.DataFrame({"id": range(100, 100 + N), "a": [0, 1, 2] * 10}).to_parquet(tmp_path / "labels.parquet")
    for i in range(N):
        (tmp_path / f"{i:03d}").rename(tmp_path / f"{100 + i}")
    assert ImageTable(root, "labels.parquet").train[0][0].shape == (3, 128, 128)


def test_the_shares_are_held_out_by_name_whatever_the_order_of_rows(folder, tmp_path):
    root = folder(a=[0, 1, 2] * 10)
    names = [{name for name, _ in split._items} for split in _splits(ImageTable(root))]
    assert [len(own) for own in names] == [23, 3, 4]  # 15 % of 30 is 4.5
    table = pd.read_csv(Path(root) / "labels.csv")
    twice = pd.concat([table, table]).sample(frac=1, random_state=0)  # every image has two rows
    twice.to_csv(tmp_path / "twice.csv", index=False)
    assert [{name for name, _ in split._items} for split in _splits(ImageTable(root, "twice.csv"))] == names


def test_an_images_split_does_not_depend_on_other_rows(folder, tmp_path):
    root = folder(a=[0, 1, 2] * 10)
    table = pd.read_csv(Path(root) / "labels.csv")
    before = {name: part for part, own in enumerate(_splits(ImageTable(root))) for name, _ in own._items}
    places = {n: int.from_bytes(hashlib.blake2b(n.encode(), digest_size=8).digest(), "little") / 2**64 for n in before}
    assert before == {name: 2 if p < 0.15 else 1 if p < 0.3 else 0 for name, p in places.items()}
    for count in (1, 5, 50):
        for i in range(count):
            Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / f"new {i}.png")
        more = pd.DataFrame({"file": [f"new {i}.png" for i in range(count)], "a": 1})
        pd.concat([more, table]).to_csv(tmp_path / "more.csv", index=False)
        after = {n: part for part, own in enumerate(_splits(ImageTable(root, "more.csv"))) for n, _ in own._items}
        assert {name: after[name] for name in before} == before and len(after) == N + count
    table[3:].to_csv(tmp_path / "fewer.csv", index=False)
    after = {n: part for part, own in enumerate(_splits(ImageTable(root, "fewer.csv"))) for n, _ in own._items}
    assert after == {name: before[name] for name in table["file"][3:]}


def _splits(data):
    return data.train, data.val, data.test


def test_splits_may_be_a_column(folder):
    parts = ["train"] * 20 + ["val"] * 4 + ["test"] * 6
    root = folder(part=parts, a=[0, 1, 2] * 10)
    data = ImageTable(root, split="part")
    assert data.targets == ("a",) and [len(split) for split in _splits(data)] == [20, 4, 6]
    assert [name for name, _ in data.val._items] == [f"{i:03d}.png" for i in range(20, 24)]


# ------------------------------------------------------------------------- another run's meaning


COLUMNS = dict(
    word=["cat", "dog", "cow"] * 10, number=NUMBERS, digit=[1, 2, 3] * 10, yes=[True, None, False] * 10,
    halves=[0.5, None, 1.5] * 10,
)  # fmt: skip


def learnt(folder):
    return describe(ImageTable(folder(**COLUMNS), image_size=8))


def test_a_table_is_read_with_the_classes_and_statistics_of_the_run(folder):
    stored = learnt(folder)
    before = {name: every(ImageTable(folder(**COLUMNS), image_size=8), name) for name in COLUMNS}
    some = dict(COLUMNS, word=["cat", "dog", "dog"] * 10, number=[3 * n for n in NUMBERS], digit=[None, 2, 3] * 10)
    data = ImageTable(folder(**some), image_size=8, metadata=stored["metadata"])
    assert meaning_changes(stored, describe(data)) == []
    assert [int(t) for t in every(data, "word")[:3]] == [0, 2, 2] and data.columns["word"].classes == (
        "cat",
        "cow",
        "dog",
    )
    assert [int(t) for t in every(data, "digit")[:3]] == [-100, 1, 2]
    number = stored["metadata"]["targets"]["number"]
    expected = (3 * np.array(NUMBERS) - number["mean"][0]) / number["std"][0]
    np.testing.assert_allclose(torch.cat(every(data, "number")), expected, rtol=1e-5)
    for name in ("yes", "halves"):
        torch.testing.assert_close(torch.stack(every(data, name)), torch.stack(before[name]), equal_nan=True)
    anew = describe(ImageTable(folder(**some), image_size=8))
    assert len(meaning_changes(stored, anew)) > 2, "the negative control: learnt anew they mean something else"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (dict(word=["cat", "kitten", "cow"] * 10), "row 3: word is kitten, a class that the model does not know; its"),
        (dict(digit=[1, 2, 4] * 10), "row 4: digit is 4, a class"),
        (dict(digit=[1, 2, "x"] * 10), "row 4: digit is x, a class"),
        (dict(yes=[True, None, "maybe"] * 10), "row 4: yes is maybe, a class"),
        (dict(number=["much", *NUMBERS[1:]]), "row 2: number is much; it must be a finite number or empty."),
        (dict(word=None), "targets.word=word is no column of"),
    ],
)  # fmt: skip
def test_what_the_model_does_not_know_is_an_error_with_its_row(folder, changed, words):
    stored = learnt(folder)
    columns = {name: own for name, own in (COLUMNS | changed).items() if own is not None}
    with pytest.raises(ValueError) as caught:
        ImageTable(folder(**columns), image_size=8, metadata=stored["metadata"])
    assert words in str(caught.value)


def test_a_column_that_is_new_or_moved_changes_nothing(folder):
    stored = learnt(folder)
    columns = {"new": ["a", "b", "c"] * 10} | dict(reversed(COLUMNS.items()))
    assert (
        meaning_changes(stored, describe(ImageTable(folder(**columns), image_size=8, metadata=stored["metadata"])))
        == []
    )


def test_other_targets_than_those_of_the_run_are_refused(folder):
    stored = learnt(folder)
    asked = "targets={word: digit} are not those that the model was trained with, {word: word, "
    others = [({"targets": {"word": "digit"}}, asked), ({"kinds": {"digit": "number"}}, "kinds.digit=number, but")]
    for arguments, words in others:
        with pytest.raises(ValueError, match=words):
            ImageTable(folder(**COLUMNS), image_size=8, metadata=stored["metadata"], **arguments)


def test_classes_of_any_type_can_be_held_by_a_checkpoint(folder):
    dates = pd.to_datetime(["2026-01-01", "2026-01-02", "2026-01-03"] * 10).date
    root = folder("labels.parquet", a=dates)
    stored = describe(ImageTable(root, "labels.parquet", kinds={"a": "class"}))
    assert stored["metadata"]["targets"]["a"]["classes"] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    again = ImageTable(root, "labels.parquet", kinds={"a": "class"}, metadata=stored["metadata"])
    assert [int(t) for t in every(again, "a")[:3]] == [0, 1, 2]


def test_images_are_read_upright_in_colour_and_at_one_size(folder, tmp_path):
    root = folder(a=[0, 1, 2] * 10)
    upright = np.zeros((40, 20, 3), np.uint8)
    upright[:20] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, as phones write it
    for i in range(N):
        Image.fromarray(np.rot90(upright)).save(tmp_path / f"{i:03d}.png", exif=exif)
    image, _ = ImageTable(root, image_size=16).train[0]
    assert image.shape == (3, 16, 16) and image[:, :7].min() > image[:, 9:].max()
    for i in range(N):
        Image.fromarray(np.full((5, 9), 128, np.uint8)).save(tmp_path / f"{i:03d}.png")
    assert ImageTable(root, image_size=16).train[0][0].shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("columns", "arguments", "words"),
    [
        (dict(a=[1, 2, 3] * 10), {"labels": "other.csv"}, "root={root}: {root} lacks other.csv (the labels): give "),
        (dict(a=[1, 2, 3] * 10), {"image": "picture"}, "image=picture is no column of {file}; its columns are file"),
        (dict(a=[1, 2, 3] * 10), {"split": "part"}, "split=part is no column of {file}"),
        (dict(a=[1, 2, 3] * 10), {"split": "a"}, "{file}, row 2: a is 1; it must be train, val, test."),
        (dict(a=["train"] * 30, b=[1, 2, 3] * 10), {"split": "a"}, "{file} has no row for the split val."),
        (dict(a=[1, 2, 3] * 10), {"targets": {"b": "c"}}, "targets.b=c is no column of {file}"),
        (dict(a=[1, 2, 3] * 10), {"kinds": {"b": "class"}}, "kinds.b names no target; the targets are a."),
        (dict(a=[1, 2, 3] * 10), {"kinds": {"a": "text"}}, "kinds.a=text must be one of class, labels, number, count."),
        (dict(a=[1, 2, 3] * 10, b=[1, 2, 3] * 10), {"targets": {"t": ["a", "b"]}, "kinds": {"t": "class"}},
         "targets.t=['a', 'b']: a class has one column"),
        (dict(a=[1, 2, 3] * 10), {"kinds": {"a": "labels"}}, "{file}, row 3: a is 2; it must be 0, 1 or empty."),
        (dict(a=["1", "2", "x"] * 10), {}, "{file}, row 4: a is x, but most values of this column are numbers."),
        (dict(a=["1", "2", "x"] * 10), {"kinds": {"a": "number"}}, "{file}, row 4: a is x; it must be a finite"),
        (dict(a=[f"text {i}" for i in range(N)]), {}, "{file}: a has 30 different texts in 30 rows, too many for"),
        ({"a b": [1, 2, 3] * 10, "a_b": [1, 2, 3] * 10}, {}, "{file}: two columns have the target name a_b"),
        (dict(a=["one"] * 30), {}, "{file}: a has 1 different values; a class needs two or more."),
        (dict(a=[None] * 30), {}, "{file}: the column a is empty."),
        (dict(a=[0.5] * 30), {}, "{file}: a is constant in the training rows"),
        (dict(a=["x", "y", "z"] * 10, b=[1, 2, 3] * 10), {"targets": {"t": ["a", "b"]}},
         "{file}: the columns a, b are neither all 0 and 1 nor all numbers."),
        (dict(a=[1, 2, 3] * 10), {"validation": 0.6, "test": 0.4}, "validation=0.6 and test=0.4 must be above"),
        (dict(a=[1, 2, 3] * 10), {"image": "a"}, "{file}, row 2: {root}/1 does not exist (30 of 30 images are"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence_with_the_file_and_row(folder, columns, arguments, words):
    root = folder(**columns)
    with pytest.raises(ValueError) as caught:
        ImageTable(root, **arguments)
    message = str(caught.value)
    assert words.format(root=root, file=f"{root}/labels.csv") in message and "\n" not in message


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("labels.csv", "file,a\n", "cannot be read: it has no rows"),
        ("labels.csv", "", "cannot be read: No columns to parse from file"),
        ("labels.csv", 'file,a\n1,2\n1,2,3,4\n', "cannot be read: row 3 has 4 values, and the header"),
        ("labels.parquet", "text", "cannot be read: "),
        ("labels.xlsx", "text", "labels=labels.xlsx must end in .csv, .tsv, .txt or .parquet."),
    ],
)  # fmt: skip
def test_a_table_that_is_none_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError) as caught:
        ImageTable(str(tmp_path), name)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def command(*arguments):
    return subprocess.run([sys.executable, "-m", "mtl.data.image_table", *map(str, arguments)], capture_output=True,
                          text=True, cwd=Path(__file__).parents[2])  # fmt: skip


def test_the_command_writes_a_configuration_that_trains(folder, tmp_path, monkeypatch):
    from mtl.data import image_table

    columns = {"Hair colour": ["red", None, "blue"] * 10, "size": NUMBERS, "note": [f"text {i}" for i in range(N)]}
    root = folder(**columns)
    data, left_out = image_table.describe(root, "labels.csv", None, None)
    assert list(left_out) == ["note"] and "too many for classes" in left_out["note"]
    arguments = {"root": root, "labels": "labels.csv", "image": None, "split": None}
    image_table.write_configuration(data, arguments, tmp_path / "conf", "mine")
    with pytest.raises(ValueError, match=r"conf/data/mine.yaml exists already: choose another --name"):
        image_table.write_configuration(data, arguments, tmp_path / "conf", "mine")
    monkeypatch.setattr("mtl.runs.figures.draw_run", lambda folder: None)
    written = [f"hydra.searchpath=[file://{tmp_path / 'conf'}]", "data=mine", "data.batch_size=4", "data.image_size=16"]
    cfg = load([*written, "trainer.max_steps=2", "tracker=jsonl", "device=cpu"])
    check(cfg)
    assert cfg.heads.Hair_colour.out_features == 2 and cfg.data.kinds.size == "number"
    (size,) = {line for line in (tmp_path / "conf/data/mine.yaml").read_text().splitlines() if "image_size" in line}
    assert size == "image_size: 32", "the files have 6×8 pixels, which 128 would blow up"
    train(cfg, tmp_path / "run")
    _, state = build(cfg)
    assert [task.name for task in state.tasks] == ["Hair_colour", "size"]
    assert [list(task.metrics) for task in state.tasks] == [["accuracy"], ["abs_err", "rmse"]]


@pytest.mark.slow
def test_the_command_says_what_it_found_and_what_is_wrong(folder, tmp_path):
    root = folder(a=["red", "green", "blue"] * 10, note=[f"text {i}" for i in range(N)])
    found = command(root, "--write", tmp_path / "conf")
    assert found.returncode == 0
    assert "train 23, val 3, test 4 rows; an image is file" in found.stdout
    assert "  a: class of 'blue', 'green', 'red'" in found.stdout and "  note is left out: " in found.stdout
    assert f"mtl-train -cd {tmp_path / 'conf'} data=mine" in found.stdout
    for arguments, words in (((), "give the folder of the images and the table."), ((tmp_path / "no",), "lacks"),
                             ((root, "--image", "b"), "image=b is no column")):  # fmt: skip
        wrong = command(*arguments)
        assert wrong.returncode in (1, 2) and words in wrong.stderr and "Traceback" not in wrong.stderr


@pytest.mark.parametrize("augment", [False, True])
def test_images_may_have_a_height_and_a_width(folder, augment):
    data = ImageTable(folder(a=["x", "y", "z"] * 10), image_size=[24, 32], augment=augment)
    assert data.input_info["image_size"] == [24, 32]
    assert data.train[0][0].shape == data.val[0][0].shape == (3, 24, 32)
    assert ImageTable(folder(a=["x", "y", "z"] * 10), image_size=24).input_info["image_size"] == 24


@pytest.mark.parametrize("size", [[24], [24, 32, 3], [24, 0], [24, 1.5], 0])
def test_another_image_size_is_refused(folder, size):
    with pytest.raises(ValueError, match=r"image_size=.* must be a whole number of 1 or more, or two of them"):
        ImageTable(folder(a=["x", "y", "z"] * 10), image_size=size)


def _module_of(own, name):
    return getattr(getattr(own, name), "__module__", None) or ""


def test_every_name_that_torch_refuses_for_a_task_is_taken():
    # transformers, where it is imported, gives every module of torch a method of its own
    own = torch.nn.ModuleDict()
    names = [name for name in dir(own) if not name.startswith("_") and "transformers" not in _module_of(own, name)]
    for name in names:
        with pytest.raises(KeyError):
            torch.nn.ModuleDict({name: torch.nn.Identity()})
    assert {name for name in names if name.strip("_") == name} <= TAKEN and not {"colour", "size"} & TAKEN


def test_a_missing_class_is_what_the_losses_ignore():
    assert IGNORED == losses.IGNORED


def test_a_column_whose_name_is_taken_is_renamed(folder):
    names = ["type", "train", "total", "defaults", "keys", "my size", "forward", "colour"]
    data = ImageTable(folder(**dict.fromkeys(names, ["x", "y", "z"] * 10)))
    assert data.targets == ("type_label", "train_label", "total_label", "defaults_label", "keys_label", "my_size",
                            "forward_label", "colour")  # fmt: skip


def test_the_command_takes_kinds(folder, tmp_path):
    root = folder(a=[1, 2, 5] * 10)
    arguments = [sys.executable, "-m", "mtl.data.image_table", root, "--kinds"]
    done = subprocess.run([*arguments, "a=number", "--write", str(tmp_path / "conf")], capture_output=True, text=True)
    assert "a: number" in done.stdout, done.stderr
    assert "out_features: 1" in (tmp_path / "conf" / "heads" / "mine.yaml").read_text()
    assert "must be NAME=KIND" in subprocess.run([*arguments, "a"], capture_output=True, text=True).stderr


WITHOUT_TORCH = """
import sys
from mtl.data.image_table import main
main()
loaded = {"torch", "torchvision", "torchmetrics", "scipy"} & {*sys.modules}
assert not loaded, loaded
import mtl.data.files
assert "torch" in sys.modules, "the negative control: a data set of files needs it"
"""


def test_the_command_does_without_torch(folder, tmp_path):
    root = folder(a=["red", "green", "blue"] * 10, b=NUMBERS)
    command = [sys.executable, "-c", WITHOUT_TORCH, root, "--write", str(tmp_path / "conf")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "a: class of" in done.stdout and "Written: " in done.stdout
