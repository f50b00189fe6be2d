"""mtl-predict: the run's own numbers, every form of input and output, and what a mistake leaves behind."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import mtl
from mtl.data.image_table import ImageTable
from mtl.predict import main
from mtl.runs import checkpoint
from mtl.runs.files import read_metrics


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command in an empty folder, in this process; a mistake is a SystemExit with its sentence."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mtl-predict", *map(str, arguments)])
        main()

    return call


@pytest.fixture
def images(trained, tmp_path):
    """A copy of the images of the table, in the working folder."""
    return shutil.copytree(trained("image_table").parent / "data" / "images", tmp_path / "images")


def refused(run, *arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    sentence = str(caught.value)
    assert sentence.startswith("mtl-predict: ") and "\n" not in sentence
    return sentence


def test_predictions_of_the_test_split_scored_outside_are_the_runs_own_metrics(run, trained, tmp_path):
    folder = trained("image_table")
    own = read_metrics(folder, "test")[0]
    root = folder.parent / "data"
    names = ImageTable(str(root)).test.names
    table = pd.read_csv(root / "labels.csv").set_index("file").loc[names]
    table.to_csv(root / "new.csv")
    run(folder, root / "new.csv", "--out", "p.csv")
    found = pd.read_csv("p.csv").set_index("file")
    assert found.index.tolist() == names

    for task in ("colour", "round", "striped"):
        known = table[task].notna()
        right = [
            str(a) == str(b).removesuffix(".0") for a, b in zip(found[task][known], table[task][known], strict=True)
        ]
        assert np.mean(right) == pytest.approx(own[f"{task}/accuracy"])
    error = (found["size"] - table["size"]).abs().mean()
    assert error == pytest.approx(own["size/abs_err"], rel=1e-5)
    assert np.sqrt((found["size"] - table["size"]).pow(2).mean()) == pytest.approx(own["size/rmse"], rel=1e-5)
    shuffled = found.set_index(found.index[::-1])
    assert (shuffled["size"] - table["size"]).abs().mean() != pytest.approx(error, rel=1e-5), "the negative control"


def test_every_format_has_the_same_rows(run, trained, images, capsys):
    folder = trained("image_table")
    for name in ("p.csv", "p.parquet", "p.jsonl"):
        run(folder, "images", "--out", name, "--all")
    assert "p.csv: 40 of 40 inputs" in capsys.readouterr().out
    csv, parquet = pd.read_csv("p.csv"), pd.read_parquet("p.parquet")
    lines = pd.DataFrame([json.loads(line) for line in (images.parent / "p.jsonl").read_text().splitlines()])
    pd.testing.assert_frame_equal(csv, parquet)
    pd.testing.assert_frame_equal(csv, lines[csv.columns])
    assert np.allclose(csv.filter(regex="^colour_probability_").sum(axis=1), 1)
    run(folder, "images/0.png", "images/1*.png", "--tasks", "size")
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in printed] == ["images/0.png", *sorted(f"images/1{i}.png" for i in ["", *range(10)])]
    assert printed[0].keys() == {"file", "size"} and printed[0]["size"] == pytest.approx(csv["size"][0], rel=1e-6)


def test_an_unreadable_file_stops_or_is_left_out_and_the_job_goes_on(run, trained, images, capsys, caplog, monkeypatch):
    folder = trained("image_table")
    good = (images / "7.png").read_bytes()
    run(folder, "images", "--out", "whole.csv", "--batch-size", 4)
    (images / "7.png").write_text("text")
    sentence = refused(run, folder, "images", "--out", "p.csv", "--batch-size", 4)
    assert "images/7.png cannot be read" in sentence and "--on-error skip" in sentence
    assert not (images.parent / "p.csv").exists() and "36 of 40 inputs are in p.csv.part" in caplog.text
    assert "is of a job that was stopped" in refused(run, folder, "images", "--out", "p.csv", "--batch-size", 4)
    (images / "7.png").write_bytes(good)
    sentence = refused(run, folder, "images", "--out", "p.csv", "--resume", "--all")
    assert "of another job" in sentence
    seen = []
    scores = mtl.Predictor.scores
    monkeypatch.setattr(mtl.Predictor, "scores", lambda self, x: (seen.append(len(x)), scores(self, x))[1])
    run(folder, "images", "--out", "p.csv", "--batch-size", 4, "--resume")
    assert seen == [4], "the rest alone"
    assert (images.parent / "p.csv").read_text() == (images.parent / "whole.csv").read_text()
    assert not (images.parent / "p.csv.part").exists()
    (images / "7.png").write_text("text")
    (images / "notes.txt").write_text("text")
    run(folder, "images", "--out", "p.csv", "--on-error", "skip", "--overwrite")
    assert "PASSED OVER: 1 of 41 files in images, which are no image: .txt" in caplog.text
    assert "p.csv: 39 of 40 inputs; 1 LEFT OUT, unreadable" in capsys.readouterr().out
    assert "images/7.png" in caplog.text and "images/7.png" not in pd.read_csv("p.csv")["file"].tolist()


def test_a_line_that_was_cut_off_is_predicted_again(run, trained, images):
    folder = trained("image_table")
    run(folder, "images", "--out", "whole.csv")
    (images / "9.png").rename(images / "9.txt")  # so that the last batch fails
    (images / "9.png").write_text("text")
    refused(run, folder, "images", "--out", "p.csv", "--batch-size", 1)
    rows = images.parent / "p.csv.part" / "rows.jsonl"
    rows.write_text(rows.read_text()[:-10])
    (images / "9.txt").rename(images / "9.png")
    run(folder, "images", "--out", "p.csv", "--resume", "--batch-size", 1)
    pd.testing.assert_frame_equal(pd.read_csv("p.csv"), pd.read_csv("whole.csv"), rtol=1e-5)


def test_several_models_give_the_mean_and_the_spread(run, trained, images):
    folders = [trained("image_table"), trained("image_table", "seed=1"), trained("image_table", "seed=2")]
    run(folders[0], "images", "--out", "mean.csv", "--all", "--also", *folders[1:])
    found = pd.read_csv("mean.csv")
    files = [images / name.removeprefix("images/") for name in found["file"]]
    each = [mtl.load(folder)(files) for folder in folders]
    blue = np.array([[own["colour"]["probabilities"]["blue"] for own in said] for said in each])
    assert np.allclose(found["colour_probability_blue"], blue.mean(0)) and blue.std(0).min() > 0
    assert np.allclose(found["colour_spread_blue"], blue.std(0, ddof=1))
    size = np.array([[own["size"] for own in said] for said in each])
    assert np.allclose(found["size"], size.mean(0)) and np.allclose(found["size_spread"], size.std(0, ddof=1))
    other = trained("image_table", "tasks=[colour]")
    sentence = refused(run, folders[0], "images", "--also", other)
    assert "has the tasks colour, but" in sentence
    narrow = trained("image_table", "data.image_size=8")
    assert "prepares its inputs in another way" in refused(run, folders[0], "images", "--also", narrow)


def test_two_columns_of_one_name_are_refused():
    from types import SimpleNamespace

    from mtl.predict import _answers
    from mtl.prediction.answers import Answer
    from mtl.prediction.inputs import Inputs

    answers = {"a": Answer("class", ("x", "y")), "a_probability": Answer("value")}
    scores = {"a": np.array([[0.4, 0.6]]), "a_probability": np.array([[3.0]])}
    ensemble = SimpleNamespace(answers=answers, scores=lambda batch: (scores, None))
    inputs, given = Inputs([0], [{"file": "f"}], list), SimpleNamespace(all=False, tokens=1)
    with pytest.raises(ValueError, match="two columns would be named a_probability"):
        _answers(ensemble, inputs, [0], None, given, None)


def test_maps_are_files_with_a_picture_beside_them(run, trained, tmp_path):
    folder = trained("scenes")
    predictor = mtl.load(folder)
    rng = np.random.default_rng(0)
    (tmp_path / "rooms" / "b").mkdir(parents=True)
    for name in ("a.png", "b/a.png"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)).save(tmp_path / "rooms" / name)
    assert "segmentation, depth, normals, edges: an array an input" in refused(run, folder, "rooms", "--out", "p.csv")
    run(folder, "rooms", "--out", "maps")
    table = pd.read_csv("maps/predictions.csv")
    assert table["segmentation"].tolist() == ["segmentation/a.png", "segmentation/b/a.png"]
    said = predictor([tmp_path / "rooms" / name for name in ("a.png", "b/a.png")])
    with Image.open("maps/segmentation/b/a.png") as image:
        assert np.array_equal(np.array(image), said[1]["segmentation"])
    for task in ("depth", "normals", "edges"):
        assert np.allclose(np.load(f"maps/{task}/b/a.npy"), said[1][task], atol=1e-5)
        with Image.open(tmp_path / "maps" / table[f"{task}_picture"][1]) as picture:
            assert picture.mode == "RGB" and picture.size == (32, 32)
    assert "is there already" in refused(run, folder, "rooms", "--out", "maps")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert "is a folder without predictions.csv" in refused(run, folder, "rooms", "--out", "mine", "--overwrite")
    run(folder, "rooms/a.png", "--out", "maps", "--overwrite", "--tasks", "depth")
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["depth", "pictures", "predictions.csv"]


def test_a_text_goes_on(run, trained, tmp_path, capsys):
    folder = trained("stdlib")
    (tmp_path / "begin.txt").write_text("the cat sat on")
    capsys.readouterr()
    run(folder, "begin.txt", "--tokens", 7)
    row = json.loads(capsys.readouterr().out)
    predictor = mtl.load(folder)
    tokens = list(b"the cat sat on")
    for _ in range(7):
        with torch.no_grad():
            logits = predictor.model(torch.tensor([tokens[-16:]]))["next_1"][0, -1]
        tokens.append(int(logits.argmax()))
    assert row == {"file": "begin.txt", "text": bytes(tokens[14:]).decode(errors="replace")}
    assert predictor("the cat sat on")["next_1"]["text"] == bytes(tokens[14:15]).decode(errors="replace")
    assert "a text goes on by the task next_1" in refused(run, folder, "begin.txt", "--tasks", "next_2")


def test_rows_of_a_table_are_told_by_their_number(run, trained, tmp_path):
    folder = trained("table")
    whole = pd.read_csv(folder.parent / "data" / "table.csv", keep_default_na=False, na_values=[""])
    new = whole.drop(columns=["basket", "amount", "again"]).head(9)
    new.to_csv(tmp_path / "new.csv", index=False)
    run(folder, "new.csv", "--out", "p.csv")
    found, said = pd.read_csv("p.csv"), mtl.load(folder)(new)
    assert found["file"].eq("new.csv").all() and found["row"].tolist() == list(range(2, 11))
    assert found["basket"].tolist() == [own["basket"]["class"] for own in said]
    assert np.allclose(found["amount"], [own["amount"] for own in said], rtol=1e-6)
    new.drop(columns=["age", "city"]).to_csv(tmp_path / "narrow.csv", index=False)
    sentence = refused(run, folder, "narrow.csv", "--out", "q.csv")
    assert "narrow.csv lacks columns of the training: city, age; it has" in sentence
    Image.new("RGB", (8, 8)).save("new.png")
    assert "new.png is no table: the model takes rows" in refused(run, folder, "new.png")


def test_every_mistake_is_one_sentence_and_writes_nothing(run, trained, images, tmp_path, monkeypatch):
    folder = trained("image_table")
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.csv").write_text("x")
    (tmp_path / "broken.pt").write_text("text")
    pd.DataFrame({"a": [1, 2], "b": [3, 4]}).to_csv("numbers.csv", index=False)
    content = checkpoint.load(folder / "checkpoints" / "best.pt")
    torch.save({**content, "format": 4}, tmp_path / "older.pt")
    (tmp_path / "mine.csv.part").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("text")
    before = sorted(tmp_path.rglob("*"))
    for arguments, words in [
        (["nowhere", "images"], "There is no checkpoint nowhere."),
        (["broken.pt", "images"], "broken.pt cannot be read as a checkpoint:"),
        (["older.pt", "images"], "older.pt is a checkpoint of format 4, which lacks"),
        ([folder, "empty"], "empty has no image in it"),
        ([folder, "nowhere.png"], "There is no nowhere.png."),
        ([folder, "*.gif"], "*.gif matches no file."),
        ([folder, "numbers.csv"], "numbers.csv: the column a has no path of an image in .; --column names another"),
        ([folder, "numbers.csv", "--column", "c"], "--column=c is no column of numbers.csv; its columns are a, b."),
        ([folder, "images", "--tasks", "color"], "tasks=color is no task of the model; did you mean colour."),
        ([folder, "images", "--out", "there.csv"], "--out there.csv is there already; --overwrite replaces it."),
        ([folder, "images", "--out", "p.xlsx"], "--out p.xlsx must end in .csv, .parquet, .jsonl, or be a folder"),
        ([folder, "images", "--out", "no/p.csv"], "--out no/p.csv: there is no folder no."),
        ([folder, "images", "--out", "maps"], "no task gives a map, so no folder is needed"),
        ([folder, "images", "--batch-size", "-1"], "--batch-size=-1 must be 1 or more."),
        ([folder, "images", "--out", "mine.csv", "--overwrite"], "mine.csv.part is not of mtl-predict"),
        ([folder, "bad", "--out", "p.csv"], "bad/a.png cannot be read"),
        ([folder, "bad", "--out", "p.csv", "--on-error", "skip"], "none of 1 inputs can be read, so p.csv is not"),
        ([folder, "images", "--device", "tpu"], "device=tpu must be auto, cpu"),
    ]:
        assert words in refused(run, *arguments), arguments
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "Parquet needs pyarrow, which the extra mtl-torch[parquet]" in refused(
        run, folder, "images", "--out", "p.parquet"
    )
    assert sorted(tmp_path.rglob("*")) == before


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from mtl.predict import main; main()"


def test_a_missing_checkpoint_is_answered_without_torch(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "x.pt", "y"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(mtl.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.strip() == "mtl-predict: There is no checkpoint x.pt."
