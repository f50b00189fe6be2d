import pickle

import pytest
import torch

from mtl.runs import checkpoint


class Malicious:
    def __reduce__(self):
        return eval, ("open('owned', 'w').close()",)


def test_what_is_saved_is_loaded_also_by_its_folder(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "last.pt"
    checkpoint.save(path, {"model": {"w": torch.arange(3)}, "step": 7})
    for where in (path, tmp_path):
        content = checkpoint.load(where)
        assert content["step"] == 7 and torch.equal(content["model"]["w"], torch.arange(3))
    assert sorted(p.name for p in path.parent.iterdir()) == ["last.pt", "last.pt.sha256"]


def test_a_failed_write_leaves_the_old_checkpoint_and_no_rubbish(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})
    with pytest.raises((AttributeError, pickle.PicklingError)):
        checkpoint.save(path, {"step": lambda: 2})
    assert checkpoint.load(path)["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "last.pt.sha256"]


def test_one_flipped_byte_is_seen(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"w": torch.zeros(1000)})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"last\.pt is broken"):
        checkpoint.load(path)


def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt"
    torch.save({"format": checkpoint.FORMAT, "model": Malicious()}, path)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        checkpoint.load(path)
    assert not (tmp_path / "owned").exists()
    torch.load(path, weights_only=False)  # negative control: without weights_only the file does run code
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [{"format": 4}, {"step": 1}, [1, 2]])
def test_something_else_that_torch_can_load_is_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt is not a checkpoint of mtl\."):
        checkpoint.load(tmp_path / "x.pt")


@pytest.mark.parametrize("found", [1, 4, 99])
def test_a_checkpoint_of_another_format_is_refused_in_one_sentence(tmp_path, found, monkeypatch):
    path = tmp_path / "x.pt"
    checkpoint.save(path, {"step": 1})
    assert checkpoint.load(path)["step"] == 1, "the format of today is read"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", found)
        checkpoint.save(path, {"step": 1})
    with pytest.raises(ValueError) as refused:
        checkpoint.load(path)
    lacks = ", which lacks the classes, statistics and splits of its data" if found < 99 else ""
    assert str(refused.value) == f"{path} is a checkpoint of format {found}{lacks}; this version reads format 5."


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="There is no checkpoint"):
        checkpoint.load(tmp_path)
    (tmp_path / "text").write_text("no checkpoint")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        checkpoint.load(tmp_path / "text")
