"""The study of fronts: a preference reaches the weights in every arm, from the first step on."""

import pytest
from support.composing import options

from mtl.config import load
from mtl.config.build import build
from mtl.data.loader import Batches, sequential

KEYS = {"static": "+weighting.weights", "tchebycheff": "+weighting.preference", "stch": "+weighting.preference"}


@pytest.mark.parametrize("arm", sorted({*options("experiment/pareto/arm")} - {"manifold"}))  # it draws its own
def test_a_preference_for_a_task_gives_it_more_weight_in_the_first_step(arm):
    base = f"+experiment=pareto/{arm}" if arm in KEYS else "+experiment=pareto"
    key, shares = KEYS.get(arm, "++strategy.rule.preference"), []
    for left, right in ((1.8, 0.2), (0.2, 1.8)):
        chosen = [base, f"+experiment/pareto/arm={arm}", f"{key}={{left:{left},right:{right}}}"]
        parts, state = build(load([*chosen, "data.batch_size=8", "+data.pairs_per_digit=1", "device=cpu"]))
        (batch, *_) = Batches(parts.data.train, sequential(8, 8), seed=0)
        weights = state.strategy.step(state.model, state.tasks, *batch).weights
        shares.append((weights["left"] / (weights["left"] + weights["right"])).item())
    assert shares[0] > 0.6 and shares[1] < 0.4
