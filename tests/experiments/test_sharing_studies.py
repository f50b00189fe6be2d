"""The studies of architectures and of relatedness: every arm trains, and the arms that are compared have one size."""

import pytest
import torch
from support.composing import options

from mtl.config import load
from mtl.config.build import build
from mtl.data.flights import make_fixture
from mtl.data.loader import Batches, sequential
from mtl.training.size import parameter_counts

FLIGHTS = "architectures/flights"
SIZES = {"architectures": 42_638, "relatedness": 14_776, FLIGHTS: 87_142}  # of hard sharing, as the READMEs say
NETWORKS = {FLIGHTS: 3}  # plain ones that are compared with one for all tasks; elsewhere two
ARMS = [(study, arm) for study in SIZES for arm in options(f"experiment/{study}/arm")]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """By study, what makes its data small; tiny flights get the real embeddings, but for the month: they have one."""
    root = tmp_path_factory.mktemp("flights") / "tiny"
    make_fixture(root)
    return {
        "architectures": ["+data.pairs_per_digit=1"],
        "relatedness": ["data.sizes=[16,4,4]"],
        FLIGHTS: [f"data.root={root}", "+backbone.categories=[8,20,17,4,104,127,7]"],
    }


@pytest.mark.parametrize(("study", "arm"), ARMS)
def test_every_arm_takes_a_step_and_has_the_size_of_the_others(study, arm, small):
    overrides = [f"+experiment/{study}/arm={arm}", f"+experiment={study}", "data.batch_size=4", "device=cpu"]
    parts, state = build(load([*overrides, *small[study]]))
    inputs, targets = next(iter(Batches(parts.data.train, sequential(4, 4), seed=0)))
    before = [p.detach().clone() for p in state.model.parameters()]
    result = state.strategy.step(state.model, state.tasks, inputs, targets)
    state.optimizer.step()
    assert all(torch.isfinite(loss) for loss in result.losses.values())
    assert any(not torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
    networks = NETWORKS.get(study, 2) if arm.startswith("single") else 1
    assert networks * parameter_counts(state.model)["total"] == pytest.approx(SIZES[study], rel=0.1)


def test_the_sweep_over_alphas_rate_is_the_studys_arm_with_a_group_of_its_own():
    overrides = ["+experiment/architectures/arm=cross_stitch", "optimizer.sharing.lr=0.5", "scheduler=constant"]
    _, state = build(load([*overrides, "+experiment=architectures/cross_stitch", "optimizer.lr=0.1", "device=cpu"]))
    rates = {group["name"]: group["lr"] for group in state.optimizer.param_groups}
    assert rates == {"backbone": 0.1, "heads": 0.1, "sharing": 0.5}
    assert parameter_counts(state.model)["total"] == pytest.approx(SIZES["architectures"], rel=0.1)
