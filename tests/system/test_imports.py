"""The garbage collector while modules are imported."""

import gc

import pytest

from mtl.system.imports import without_garbage_collection


@pytest.fixture
def collector():
    """Leaves the garbage collector as it was."""
    enabled = gc.isenabled()
    yield
    (gc.enable if enabled else gc.disable)()


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_off_inside_and_afterwards_as_it_was(collector, enabled):
    (gc.enable if enabled else gc.disable)()
    with pytest.raises(ImportError), without_garbage_collection():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled() == enabled
