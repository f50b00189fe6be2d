"""Devices, seeds and the state of the random generators."""

import random

import numpy as np
import pytest
import torch

from mtl.system.environment import describe, find_device, rng_state, seed_everything, set_rng_state


def draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)]


def test_a_saved_state_draws_the_same_numbers_again():
    seed_everything(3)
    state = rng_state()
    first = draws()
    assert draws() != first
    set_rng_state(state)
    assert draws() == first


def test_a_seed_is_for_every_generator():
    seed_everything(3)
    first = draws()
    seed_everything(3)
    assert draws() == first
    seed_everything(4)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu", "device=gpu must be auto, cpu, cuda, cuda:<number>, xpu, xpu:<number> or mps."),
        ("cuda:99", "device=cuda:99 is not on this machine; there are .*cpu."),
    ],
)
def test_a_device_that_is_not_there_is_an_error(name, message):
    with pytest.raises(ValueError, match=message):
        find_device(name)


def test_auto_is_the_best_device_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("auto") == torch.device("mps")


def test_versions_are_recorded_and_no_git_is_no_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    versions = describe()
    assert versions["torch"] in torch.__version__  # which may name a build too
    assert versions["git"] is None
