"""The small files of a run's folder."""

import pytest

from mtl.runs.files import (
    finite_or_null,
    read_json,
    read_overrides,
    read_status,
    run_folder,
    write_atomic,
    write_status,
)


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "it.txt"
    write_atomic(file, "old")

    def full(source, target):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["it.txt"], "no temporary file stays"


def test_numbers_that_json_does_not_have_are_null():
    nan, inf = float("nan"), float("inf")
    assert finite_or_null({"a": [1, nan, (inf, "nan")], "b": {"c": -inf, "d": True}}) == {
        "a": [1, None, [None, "nan"]],
        "b": {"c": None, "d": True},
    }


def test_a_status_is_read_as_it_was_written(tmp_path):
    assert read_status(tmp_path) == read_json(tmp_path / "status.json") == {}
    write_status(tmp_path, "failed", "\nthe first\nthe second")
    status = read_status(tmp_path)
    assert (status["status"], status["error"]) == ("failed", "the first")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('# overrides: ["seed=1", "+a=[1,2]"]\nseed: 1\n', ["seed=1", "+a=[1,2]"]),
        ("# overrides: []\n", []),
        ('# overrides: ["seed', None),
        ("seed: 1\n", None),
        (None, None),
    ],
    ids=["two", "none", "cut off", "not recorded", "no file"],
)
def test_the_overrides_are_in_the_first_line_of_the_configuration(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    assert read_overrides(tmp_path) == expected


@pytest.mark.parametrize("known", ["status.json", "config.yaml", "metrics.jsonl", ".hydra"])
def test_a_run_folder_is_found_from_itself_or_its_checkpoint(tmp_path, known):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.pt"
    assert run_folder(tmp_path / "run") is None, "an empty folder is no run's"
    (tmp_path / "run" / known).touch()
    assert run_folder(tmp_path / "run") == run_folder(checkpoint) == tmp_path / "run"
    assert run_folder(tmp_path / "run" / "last.pt") is None
    assert run_folder(tmp_path) is None
