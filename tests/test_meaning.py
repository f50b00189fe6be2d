"""A model is what it says, through the real commands: changed tables, moved folders, and which weights are measured."""

import json
import shutil

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from support.composing import configuration

from mtl.config.build import build_parts
from mtl.data.image_table import make_fixture
from mtl.errors import ConfigError
from mtl.evaluate import describe_checkpoint, evaluate_checkpoint, find_checkpoint
from mtl.runs import checkpoint
from mtl.runs.files import read_metrics
from mtl.runs.terminal import only_metrics
from mtl.train import train

TABLE = [
    "data=image_table", "data.image_size=16", "data.batch_size=4", "trainer.max_steps=10", "trainer.val_every=5",
    "trainer.examples=0", "tracker=jsonl", "device=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of the images and of the run, which tests must not change."""
    home = tmp_path_factory.mktemp("meaning")
    make_fixture(home / "data")
    cfg = configuration(*TABLE).copy()
    cfg.data.root = str(home / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtl.runs.figures.draw_run", lambda folder: None)
        train(cfg, home / "run")
    return home


@pytest.fixture
def home(trained, tmp_path):
    """A copy of both, whose data are where the run had them: the run's own are left alone."""
    shutil.copytree(trained, tmp_path / "home")
    return tmp_path / "home"


def edit(home, change):
    file = home / "data" / "labels.csv"
    change(pd.read_csv(file)).to_csv(file, index=False)


def here(home):
    return f"data.root={home / 'data'}"


def rename(old, new):
    return lambda table: table.assign(colour=table.colour.replace(old, new))


def add_rows(home, count=5):
    def add(table):
        rows = table.iloc[:count].copy()
        rows["file"] = [f"images/more{i}.png" for i in range(count)]
        rows["size"] = 500.0
        for name in rows["file"]:
            Image.new("RGB", (24, 32), "white").save(home / "data" / name)
        return pd.concat([rows, table])

    edit(home, add)


def predictions(home, read_as):
    """The model's output for every image, by its name, in the units of the table where they are numbers."""
    content = checkpoint.load(home / "run" / "checkpoints" / "best.pt")
    cfg = configuration(*TABLE).copy()
    cfg.data.root = str(home / "data")
    parts = build_parts(cfg, content["data"] if read_as else None)
    parts.model.load_state_dict(content["model"])
    size, found = parts.data.columns["size"], {}
    parts.model.eval()
    for split in (parts.data.train, parts.data.val, parts.data.test):
        for i, name in enumerate(split.names):
            with torch.no_grad():
                output = parts.model(split[i][0][None])
            colour = parts.data.columns["colour"].classes[int(output["colour"].argmax())]
            found[name] = colour, output["size"].item() * size.std[0] + size.mean[0]
    return found


def test_a_renamed_class_is_an_error_of_mtl_eval_and_of_resume(home, forked):
    edit(home, rename("blue", "azure"))
    done = forked("mtl.evaluate", str(home / "run"), here(home))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert (
        "row 2: colour is azure, a class that the model does not know; its classes are blue, green, red" in done.stderr
    )
    with pytest.raises(ConfigError) as caught:
        resume(home)
    assert "data.metadata.targets.colour.classes lacks 'blue' and has the new 'azure'" in str(caught.value)


def test_permuted_classes_and_a_gone_column_are_errors_of_resume(home):
    edit(home, lambda table: table.assign(colour=table.colour.replace({"blue": "red", "red": "blue"})))
    with pytest.raises(ConfigError, match="started with other data: labels of train differ"):
        resume(home)
    edit(home, lambda table: table.drop(columns="striped"))
    with pytest.raises(ConfigError, match="striped"):
        resume(home)
    with pytest.raises(ValueError, match=r"targets\.striped=striped is no column"):
        evaluate_checkpoint(home / "run", "test", overrides=[here(home)])


def test_added_rows_change_no_prediction_and_no_split(home, caplog):
    before = predictions(home, read_as=True)
    add_rows(home)
    after = predictions(home, read_as=True)
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 5
    anew = predictions(home, read_as=False)
    assert {name: anew[name] for name in before} != before, "the negative control: with statistics of today's table"
    with pytest.raises(ConfigError, match=r"targets\.size\.mean was .* and is .*; .* are new, 0 are not in it"):
        resume(home)


def test_an_unchanged_table_gives_the_runs_own_numbers_without_a_warning(home, caplog):
    (row,) = read_metrics(home / "run", "test")
    assert evaluate_checkpoint(home / "run", "test", overrides=[here(home)]) == only_metrics(row)
    edit(home, lambda table: table.sample(frac=1, random_state=0))
    assert evaluate_checkpoint(home / "run", "test", overrides=[here(home)]).keys() == only_metrics(row).keys()
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "THE DATA DIFFER from those that the model was trained on: the samples of test are in another order, or not as "
        "many times in it."
    ]


def test_an_image_that_was_trained_on_and_is_tested_on_is_said(home, caplog):
    content = checkpoint.load(home / "run")
    shares = {"data.test": 0.6, "data.validation": 0.2}
    evaluate_checkpoint(home / "run", "test", overrides=[here(home), *(f"{key}={v}" for key, v in shares.items())])
    assert any("samples of test were in train" in record.getMessage() for record in caplog.records)
    assert content["data"]["splits"]["train"]["size"] > 10


def resume(home, *overrides):
    cfg = configuration(*TABLE, f"resume={home / 'run'}", "trainer.max_steps=12", *overrides).copy()
    cfg.data.root = str(home / "data")
    train(cfg, home / "run")


def test_where_the_data_are_is_no_part_of_the_run(home, forked):
    """In a new place by an override; and in the place where the run was resumed without one."""
    moved = home / "elsewhere"
    (home / "data").rename(moved)
    (home / "run" / "config.yaml").write_text((home / "run" / "config.yaml").read_text().replace("/data", "/gone"))
    done = forked("mtl.evaluate", str(home / "run"))
    assert done.returncode == 1 and "there is no folder" in done.stderr and "give data.root=…" in done.stderr
    done = forked("mtl.evaluate", str(home / "run"), f"data.root={moved}", "trainer.num_workers=1", "--split", "val")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()
    best = min(read_metrics(home / "run", "val"), key=lambda row: row["loss/total"])
    assert json.loads(lines[-1]) == only_metrics(best) and "best so far by loss/total" in lines[0]
    (home / "elsewhere").rename(home / "data")
    resume(home)
    assert checkpoint.load(home / "run")["step"] == 12
    (test,) = read_metrics(home / "run", "test")
    assert evaluate_checkpoint(home / "run" / "checkpoints" / "best.pt", "test") == only_metrics(test)


@pytest.mark.parametrize(
    "change",
    ["seed=1", "trainer.precision=bf16", "backbone.name=resnet18", "data=digits", "~data.root", "data.root=a,b",
     "data._target_=mtl.data.toy.Toy", "+trainer=x"],
)  # fmt: skip
def test_nothing_that_the_model_is_can_be_overridden(trained, change):
    with pytest.raises(ValueError, match=r"cannot be changed in a trained model; accepted are data\.<argument>=…"):
        evaluate_checkpoint(trained / "run", "test", overrides=[change])


def test_what_the_images_size_means_is_checked(trained):
    with pytest.raises(ValueError, match=r"are not those .* data\.input_info\.image_size was 16 and is 32"):
        evaluate_checkpoint(trained / "run", "test", overrides=["data.image_size=32"])
    with pytest.raises(ValueError, match="is no override"):
        evaluate_checkpoint(trained / "run", "test", overrides=["data.root"])


# ----------------------------------------------------------------------------------- which weights


def test_the_best_is_measured_unless_told_otherwise(home, caplog):
    folder = home / "run" / "checkpoints"
    assert (
        find_checkpoint(home / "run") == folder / "best.pt"
        and find_checkpoint(home / "run", "last") == folder / "last.pt"
    )
    assert find_checkpoint(folder / "last.pt") == folder / "last.pt" and not caplog.records
    (folder / "best.pt").unlink()
    assert find_checkpoint(home / "run") == folder / "last.pt"
    assert [r.getMessage() for r in caplog.records] == [f"{folder} has no best.pt: last.pt is measured."]


@pytest.mark.parametrize(
    ("step", "best", "ema", "words"),
    [
        (4, 0.5, None, "x.pt: step 4, the best so far by left/accuracy = 0.5 on val"),
        (6, 0.5, None, "x.pt: step 6, not the best: that is step 4 by left/accuracy = 0.5 on val"),
        (6, None, None, "x.pt: step 6, left/accuracy has had no value yet"),
        (4, 0.5, {}, "x.pt: step 4, the best so far by left/accuracy = 0.5 on val; averaged weights, trainer.ema=0.9"),
    ],
)
def test_the_weights_are_named(tmp_path, step, best, ema, words):
    trainer = {"monitor": "left/accuracy", "ema": 0.9}
    content = {"config": {"trainer": trainer}, "step": step, "best": best, "best_step": 4, "ema": ema}
    assert describe_checkpoint("x.pt", content) == words


# ------------------------------------------------------------------ a data set of somebody's own


def own(name, root, *overrides):
    tiny = ["~backbone", "+backbone._target_=support.networks.Tiny", "tasks=[left]", "tracker=jsonl", "device=cpu"]
    cfg = configuration(*tiny, "trainer.max_steps=2", "trainer.val_every=1").copy()
    cfg.data = {"_target_": f"support.learning_data.{name}", "root": str(root)}
    return OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(overrides)))


@pytest.mark.parametrize(("name", "kind"), [("Words", "kept"), ("Stubborn", "error"), ("Silent", "sizes")])
def test_a_data_set_of_ones_own_that_learns(tmp_path, caplog, name, kind):
    file = tmp_path / "words.txt"
    file.write_text("cow dog cow eel dog cow eel fly " * 3)
    train(own(name, tmp_path), tmp_path / "run")
    before = evaluate_checkpoint(tmp_path / "run", "test")
    with file.open("a") as words:
        words.write("cow cow" if kind == "kept" else "ant")
    if kind == "kept":
        assert evaluate_checkpoint(tmp_path / "run", "test") == before
    elif kind == "error":
        with pytest.raises(ValueError, match=r"are not those .*: data\.metadata\.words has the new 'ant'"):
            evaluate_checkpoint(tmp_path / "run", "test")
    with pytest.raises(ConfigError, match=r"was started with other data: .*train had 24 samples and has 2"):
        train(own(name, tmp_path, f"resume={tmp_path / 'run'}"), tmp_path / "run")
