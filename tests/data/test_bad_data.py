"""Unreadable samples and targets that a loss does not accept: named early, before a device-side assert."""

import json
import re

import pytest
import torch
from torch.utils.data import Dataset

from mtl.data.loader import Batches, DataError, sequential


class Files(Dataset):
    """Ten samples, each a file with one number; a file without a number is unreadable."""

    def __init__(self, folder, **contents):
        self.folder = folder
        for index in range(10):
            self.path(index).write_text(contents.get(f"file_{index}", str(index)))

    def path(self, index):
        return self.folder / f"{index}.txt"

    def __len__(self):
        return 10

    def __getitem__(self, index):
        value = float(self.path(index).read_text())
        shape = (2, 2) if value == 99 else (2,)
        return torch.full(shape, value), {"a": torch.tensor(index % 3)}


class Quick(Files):
    """The same, read by the batch."""

    def batch(self, indices, epoch):
        samples = [self[index] for index in indices]
        return torch.stack([x for x, _ in samples]), {"a": torch.stack([t["a"] for _, t in samples])}


def read(dataset, workers=0, **options):
    return [
        inputs[:, 0].tolist() for inputs, _ in Batches(dataset, sequential(10, 4), 0, workers, split="val", **options)
    ]


@pytest.mark.parametrize("kind", [Files, Quick])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_sample_is_named_with_its_index_and_path(tmp_path, kind, workers):
    assert read(kind(tmp_path), workers) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    dataset = kind(tmp_path, file_5="corrupt")
    with pytest.raises(DataError) as caught:
        read(dataset, workers)
    first, *trace = str(caught.value).splitlines()
    said = "val sample 5 cannot be read: ValueError: could not convert string to float: 'corrupt'"
    place = rf"\({tmp_path / '5.txt'}\) \(tests/data/test_bad_data.py, line \d+\)"
    assert re.fullmatch(rf"{said} {place}; data.on_error=skip leaves such samples out\.", first)
    assert any("__getitem__" in line for line in trace), "where it happened, also in another process"


@pytest.mark.parametrize("kind", [Files, Quick])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_missing_one_is_left_out_where_that_is_asked_for(tmp_path, kind, workers, caplog):
    dataset = kind(tmp_path)
    dataset.path(6).unlink()
    left_out = []
    for _ in range(2):
        batches = read(dataset, workers, on_error="skip", unreadable=left_out)
        assert batches == [[0, 1, 2, 3], [4, 5, 7], [8, 9]]
    assert left_out == [6]
    (record,) = caplog.records
    assert "LEFT OUT: val sample 6 cannot be read: FileNotFoundError" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_batch_of_which_nothing_can_be_read_ends_the_training(tmp_path):
    dataset = Files(tmp_path, file_8="x", file_9="y")
    assert read(dataset, on_error="skip") == [[0, 1, 2, 3], [4, 5, 6, 7]], "an evaluation goes on without it"
    with pytest.raises(DataError, match="train sample 8 cannot be read"):
        list(Batches(dataset, sequential(10, 4), 0, split="train", on_error="skip"))


def test_a_sample_of_another_shape_is_named(tmp_path):
    with pytest.raises(
        DataError,
        match=r"val sample 2 cannot be read: the input has the shape \[2, 2\], and in sample 0 the shape \[2\];",
    ):
        read(Files(tmp_path, file_2="99"))


def test_a_wrong_label_ends_a_run_with_its_name(train_tiny, monkeypatch):
    from mtl.data.digits import Pairs

    draw = Pairs.batch

    def wrong(self, indices, epoch):
        inputs, targets = draw(self, indices, epoch)
        if 1234 in indices:
            targets["right"][indices.index(1234)] = 10
        return inputs, targets

    monkeypatch.setattr(Pairs, "batch", wrong)
    with pytest.raises(
        DataError, match="train samples: the target of right in sample 1234 is 10, but its loss takes 0 to 9"
    ):
        train_tiny("trainer.overfit_batches=155", "trainer.max_steps=155", "trainer.val_every=155")


def test_samples_left_out_are_counted_in_the_summary(train_tiny, monkeypatch):
    from mtl.data.digits import Pairs

    draw = Pairs.batch

    def unreadable(self, indices, epoch):
        if len(self) > 5000 and 3 in indices:
            raise OSError("the disk has a hole")
        return draw(self, indices, epoch)

    monkeypatch.setattr(Pairs, "batch", unreadable)
    folder = train_tiny("trainer.overfit_batches=2", "data.on_error=skip")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["skipped"] == {"steps": 0, "samples": {"train": [3], "val": [3]}}
