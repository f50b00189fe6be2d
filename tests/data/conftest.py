"""The tiny file data sets, each written once per session."""

import importlib
import shutil

import numpy as np
import pandas as pd
import pytest

from mtl.data.table import make_fixture


@pytest.fixture(scope="session")
def fixture_root(tmp_path_factory):
    """The folder of a data set's fixture, which tests must not change."""
    made = {}

    def root(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("fixtures") / name
            importlib.import_module(f"mtl.data.{name}").make_fixture(made[name])
        return made[name]

    return root


@pytest.fixture
def own_root(fixture_root, tmp_path):
    """A copy of the fixture, for tests that damage it."""
    return lambda name: shutil.copytree(fixture_root(name), tmp_path / name)


@pytest.fixture
def shop(tmp_path):
    """The folder of the tiny table."""
    make_fixture(tmp_path / "shop")
    return tmp_path / "shop"


@pytest.fixture
def write(tmp_path):
    """Write a table of these columns and two targets, y and z, of which no column tells much; return its folder."""
    rng = np.random.default_rng(0)

    def write(name="table.csv", rows=60, **columns):
        own = {"y": rng.normal(size=rows), "z": rng.integers(0, 2, rows), **columns}
        table = pd.DataFrame({key: value for key, value in own.items() if value is not None})
        table.to_csv(tmp_path / name, index=False) if name.endswith("csv") else table.to_parquet(tmp_path / name)
        return str(tmp_path)

    return write
