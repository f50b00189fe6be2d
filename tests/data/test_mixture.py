"""How often each task's samples are drawn from sets of different sizes."""

from collections import Counter

import numpy as np
import pytest

from mtl.data.loader import EndlessSampler
from mtl.data.mixture import Mixture

SIZES = {"a": 100, "b": 37, "c": 4}
CHOICES = {"equal": {}, "proportional": {}, "temperature": {"temperature": 2.0}}


def drawn(mixture, task, epochs):
    """The samples that a task has in these epochs, in the order of the places."""
    return [
        [mixture.sample(task, index, epoch) for index in mixture.places(task, range(len(mixture)))]
        for epoch in range(epochs)
    ]


@pytest.mark.parametrize("sampling", CHOICES)
def test_a_task_is_drawn_as_often_as_its_size_says(sampling):
    expected = {
        "equal": {"a": 100, "b": 100, "c": 100},
        "proportional": SIZES,
        "temperature": {"a": 100, "b": 61, "c": 20},  # 100 sqrt(n / 100): 60.8 and 20
    }[sampling]
    mixture = Mixture(SIZES, sampling, **CHOICES[sampling])
    assert len(mixture) == 100
    assert {task: len(mixture.places(task, range(100))) for task in SIZES} == expected


@pytest.mark.parametrize("sampling", CHOICES)
@pytest.mark.parametrize("seed", [0, 7])
def test_no_sample_of_a_task_is_favoured(sampling, seed):
    mixture = Mixture(SIZES, sampling, seed=seed, **CHOICES[sampling])
    for task, size in SIZES.items():
        seen = Counter()
        for own in drawn(mixture, task, 9):
            seen.update(own)
            counts = [seen[sample] for sample in range(size)]
            assert max(counts) - min(counts) <= 1, (task, counts)


def test_proportional_is_one_pass_over_every_set_and_equal_is_not():
    once = {task: [*range(size)] for task, size in SIZES.items()}
    passes = {task: sorted(drawn(Mixture(SIZES, "proportional"), task, 3)[2]) for task in SIZES}
    assert passes == once
    assert sorted(drawn(Mixture(SIZES), "c", 3)[2]) == sorted([*range(4)] * 25) != once["c"]


def test_equal_draws_what_it_always_drew():
    """The formula from before there was a choice: an order of each task, gone through over the epochs."""
    mixture = Mixture(SIZES, seed=5)
    for number, (task, size) in enumerate(SIZES.items()):
        order = np.random.default_rng((5, number)).permutation(size)
        for epoch in (0, 1, 4):
            assert [mixture.sample(task, i, epoch) for i in range(100)] == [
                order[(epoch * 100 + i) % size] for i in range(100)
            ]
            assert mixture.places(task, range(100)) == [*range(100)]


def test_a_temperature_goes_from_proportional_to_equal():
    def count(temperature):
        return len(Mixture(SIZES, "temperature", temperature).places("b", range(100)))

    counts = [count(t) for t in (1, 1.5, 2, 5, 50, 1e9)]
    assert counts == sorted(set(counts)) and counts[0] == SIZES["b"] and counts[-1] == 100


def test_a_tasks_places_are_spread_over_the_epoch():
    places = Mixture(SIZES, "proportional").places("b", range(100))
    assert {*np.diff(places)} == {2, 3} and places[0] == 0


def test_what_is_drawn_follows_from_the_step_alone():
    def draws(start, seed=0):
        mixture = Mixture(SIZES, "proportional", seed=seed)
        keys = EndlessSampler(len(mixture), 8, 12, seed=seed, start=start)
        found = []
        for _, (epoch, indices) in zip(range(start, 30), keys, strict=False):
            found.append([[mixture.sample(t, i, epoch) for i in mixture.places(t, indices)] for t in SIZES])
        return found

    whole = draws(0)
    assert draws(17) == whole[17:] and draws(17, seed=1) != whole[17:]
    assert {len(own[0]) for own in whole} == {8} and len({len(own[1]) for own in whole}) > 1


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (dict(sampling="balanced"), "sampling=balanced must be one of equal, proportional, temperature."),
        (dict(sampling="temperature"), "temperature=None must be a number of 1 or more."),
        (dict(sampling="temperature", temperature=0.5), "temperature=0.5 must be a number of 1 or more."),
        (dict(sampling="temperature", temperature=float("nan")), "temperature=nan must be a number of 1 or more."),
        (dict(sampling="temperature", temperature="hot"), "temperature=hot must be a number of 1 or more."),
        (dict(temperature=2), "temperature=2 must be null with sampling=equal."),
        (dict(sampling="proportional", temperature=2), "temperature=2 must be null with sampling=proportional."),
    ],
    ids=lambda value: "-".join(f"{v}" for v in value.values()) if isinstance(value, dict) else "",
)
def test_a_wrong_choice_is_one_sentence(choice, words):
    with pytest.raises(ValueError) as caught:
        Mixture(SIZES, **choice)
    assert str(caught.value) == words


def test_what_a_batch_has_is_logged_and_less_than_one_sample_is_a_warning(caplog):
    caplog.set_level("INFO")
    Mixture(SIZES, "proportional").log_batch(10)
    said, warned = caplog.records
    assert said.message == "a batch has on average 10 a, 3.7 b, 0.4 c" and said.levelname == "INFO"
    assert warned.levelname == "WARNING" and "0.4 samples of c" in warned.message
