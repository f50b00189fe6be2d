"""The rules' state: loaded into a new object, continued bit for bit, with absent tasks."""

import copy
import io

import pytest
import torch
from support.rule_zoo import KEEPING, ON_GRAM, ON_ROWS, rows_of

from mtl import rules

# Which of four tasks are in each batch.
BATCHES = [[0, 1, 2, 3], [0, 2], [3], [1, 2, 3], [0, 1, 2, 3], [2, 0], [0, 1, 2, 3]]
MAKE = ON_GRAM | ON_ROWS


def call(rule, step):
    present = BATCHES[step]
    rows = rows_of(4, 6, seed=step)[present].float()
    gram = rows.double() @ rows.double().T
    if rule.needs_rows:
        direction, weights = rule.combine([rows[:, :2], rows[:, 2:]], gram, present=present)
        return torch.cat([*direction, weights])
    return rule(gram, present=present) if rule.per_task_state else rule(gram)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", MAKE)
def test_a_fresh_object_goes_on_bit_for_bit(name):
    rule = MAKE[name](4)
    for step in range(4):
        call(rule, step)
    fresh = MAKE[name](4)
    fresh.load_state_dict(through_a_file(rule.state_dict()))
    twin = copy.deepcopy(rule)
    for step in range(4, len(BATCHES)):
        expected = call(rule, step)
        assert torch.equal(call(fresh, step), expected)
        assert torch.equal(call(twin, step), expected)


@pytest.mark.parametrize("name", [*KEEPING, "PCGrad", *(n for n in ON_ROWS if n != "TrimmedMean")])
def test_without_its_state_it_would_go_on_differently(name):
    rule, fresh = MAKE[name](4), MAKE[name](4)
    for step in range(4):
        call(rule, step)
    later = [(call(rule, step), call(fresh, step)) for step in range(4, len(BATCHES))]
    assert any(not torch.equal(one, other) for one, other in later)


@pytest.mark.parametrize("name", ["DBMTL", "MoCo", "ExcessMTL"])
def test_a_loaded_state_is_a_copy(name):
    rule, fresh = MAKE[name](4), MAKE[name](4)
    call(rule, 0)
    fresh.load_state_dict(rule.state_dict())
    call(rule, 4)
    other = MAKE[name](4)
    call(other, 0)
    assert torch.equal(call(fresh, 4), call(other, 4))


@pytest.mark.parametrize("name", ["GradVac", "SDMGrad", "PCD", "RotoGradScale", "DBMTL", "MoCo", "ExcessMTL"])
def test_another_number_of_tasks_is_an_error(name):
    rule = MAKE[name](4)
    call(rule, 0)
    with pytest.raises(ValueError, match="for 4 tasks, but num_tasks=3"):
        MAKE[name](3).load_state_dict(rule.state_dict())
    rows = rows_of(3, 6)
    go = (lambda **k: rule.combine([rows], rows @ rows.T, **k)) if rule.needs_rows else None
    go = go or (lambda **k: rule(rows @ rows.T, **k))
    with pytest.raises(ValueError, match=r"has 3 tasks, but num_tasks=4\."):
        go()
    with pytest.raises(ValueError, match=r"has 3 tasks, but present=\[0, 1\]\."):
        go(present=[0, 1])
    for wrong in ([0, 1, 4], [0, 1, 1]):
        with pytest.raises(ValueError, match="must be different task indices from 0 to 3"):
            go(present=wrong)


@pytest.mark.parametrize("name", ["GradVac", "PCD", "RotoGradScale"])
def test_what_is_kept_of_absent_tasks_stays(name):
    rule = MAKE[name](4)
    call(rule, 0)
    before = {key: value.clone() for key, value in rule.named_buffers()}
    call(rule, 1)
    for key, value in rule.named_buffers():
        absent = value[[1, 3]]
        assert torch.equal(absent, before[key][[1, 3]]), key
    assert any(not torch.equal(value, before[key]) for key, value in rule.named_buffers()) or name == "RotoGradScale"


@pytest.mark.parametrize("name", ["SDMGrad", "MoCo"])
def test_weights_of_absent_tasks_stay_and_the_sum_is_one(name):
    rule = MAKE[name](4)
    call(rule, 0)
    before = rule.weights.clone()
    call(rule, 1)
    assert torch.equal(rule.weights[[1, 3]], before[[1, 3]])
    assert rule.weights.sum().item() == pytest.approx(1)


def test_the_state_stays_in_float64_on_the_cpu():
    rule = rules.GradVac(3).half().to("meta")
    assert rule.targets.dtype == torch.float64
    assert rule.targets.device.type == "cpu"


def test_seeds_and_the_global_generator():
    gram = rows_of(6, 4) @ rows_of(6, 4).T
    for make in (rules.PCGrad, lambda seed=0: rules.GradVac(6, seed=seed)):
        state = torch.random.get_rng_state()
        first = make(seed=1)(gram)
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.rand(1)
        assert torch.equal(make(seed=1)(gram), first)
        assert not torch.equal(make(seed=2)(gram), first)
