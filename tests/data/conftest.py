"""The tiny file data sets, each written once per session."""

import importlib
import shutil

import pytest


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
