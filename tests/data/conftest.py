"""The tiny file data sets, each written once a session."""

import importlib
import shutil

import pytest


@pytest.fixture(scope="session")
def fixture_root(tmp_path_factory):
    """The folder of a data set's fixture, which nobody changes."""
    made = {}

    def root(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp("fixtures") / name
            importlib.import_module(f"mtl.data.{name}").make_fixture(made[name])
        return made[name]

    return root


@pytest.fixture
def own_root(fixture_root, tmp_path):
    """A copy of it, to break."""
    return lambda name: shutil.copytree(fixture_root(name), tmp_path / name)
