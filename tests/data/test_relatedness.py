"""MMoE's synthetic data, from its own formula."""

import math

import numpy as np
import pytest
import torch

from mtl.config import load
from mtl.config.build import build
from mtl.data.relatedness import Relatedness


def all_of(split):
    inputs, targets = split.batch(range(len(split)), epoch=0)
    return inputs.double().numpy(), {name: target[:, 0].double().numpy() for name, target in targets.items()}


def test_the_targets_are_the_formulas():
    data = Relatedness(correlation=0.3, dimension=7, sines=3, noise=0, sizes=(20, 5, 5), seed=4)
    inputs, targets = all_of(data.train)
    for w, target in zip(data.directions, targets.values(), strict=True):
        for x, y in zip(inputs, target, strict=True):
            s = sum(a * b for a, b in zip(w, x, strict=True))
            assert y == pytest.approx(s + math.sin(s) + math.sin(2 * s + 1) + math.sin(3 * s + 4), abs=1e-5)
            assert y != pytest.approx(s + math.sin(s) + math.sin(2 * s) + math.sin(3 * s), abs=1e-5)


@pytest.mark.parametrize("correlation", [-1, -0.4, 0, 0.5, 1])
def test_the_cosine_of_the_two_directions_is_the_correlation(correlation):
    first, second = Relatedness(correlation=correlation, sizes=(1, 1, 1)).directions
    assert first @ second == pytest.approx(correlation, abs=1e-12)
    assert np.linalg.norm([first, second], axis=1) == pytest.approx([1, 1])


def test_a_correlation_of_one_is_one_task_twice_but_for_the_noise():
    _, same = all_of(Relatedness(correlation=1, noise=0).test)
    assert np.array_equal(same["first"], same["second"])
    _, noisy = all_of(Relatedness(correlation=1, noise=0.2).test)
    assert np.std(noisy["first"] - noisy["second"]) == pytest.approx(0.2 * math.sqrt(2), rel=0.05)


def test_the_inputs_are_standard_normal_and_no_split_has_those_of_another():
    data = Relatedness(dimension=5)
    parts = [all_of(split)[0] for split in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [10_000, 2_000, 5_000]
    assert np.abs(parts[0].mean(0)).max() < 0.05 and np.abs(np.cov(parts[0].T) - np.eye(5)).max() < 0.06
    assert len({tuple(x) for part in parts for x in part}) == 17_000


def test_a_seed_is_the_same_data_and_another_seed_other_directions():
    first, again, other = (Relatedness(seed=seed, sizes=(4, 2, 2)) for seed in (0, 0, 1))
    assert first.train.digest == again.train.digest != other.train.digest
    assert not np.allclose(first.directions, other.directions)
    inputs, targets = first.train[2]
    batch, more = first.train.batch([1, 2], epoch=3)
    assert torch.equal(inputs, batch[1]) and torch.equal(targets["second"], more["second"][1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"correlation": 1.5}, "correlation=1.5 must be from -1 to 1"),
        ({"dimension": 1}, "dimension=1 must be 2 or more"),
        ({"sines": -1}, "sines=-1 must be 0 or more"),
        ({"noise": -0.1}, "noise=-0.1 must be 0 or more"),
        ({"sizes": [10, 0, 5]}, r"sizes=[10, 0, 5] must be three numbers of 1 or more"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
    ],
    ids=["correlation", "dimension", "sines", "noise", "sizes", "batch_size"],
)
def test_what_cannot_be_is_refused_in_a_sentence(arguments, words):
    with pytest.raises(ValueError) as error:
        Relatedness(**arguments)
    assert str(error.value).startswith(words)


def test_the_configuration_names_two_heads_and_a_backbone_for_vectors():
    parts, state = build(load(["data=relatedness", "device=cpu", "data.sizes=[9,4,4]", "seed=3"]))
    assert list(state.model.heads) == ["first", "second"]
    assert state.model(torch.zeros(2, 100))["first"].shape == (2, 1)
    assert parts.data.train.digest == Relatedness(sizes=(9, 4, 4), seed=3).train.digest  # the run's seed draws them
