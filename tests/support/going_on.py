"""Training a few steps by hand, and going on after a round trip of the state."""

import copy
import io

import torch
from support.exactness import same

from mtl.config.build import build
from mtl.engine.weighting import observe_after_update


def built_from(cfg):
    parts, state = build(cfg)
    state.model.train()
    return parts.data, state


def take_steps(data, state, numbers):
    """Some steps as the loop takes them; in one of them a task has no labels."""
    for step in numbers:
        draws = state.strategy.draws
        numbered = [8 * (draws * step + draw) for draw in range(draws)]
        batches = [data.train.batch(list(range(first, first + 8)), epoch=0) for first in numbered]
        inputs, targets = batches[-1]
        if step == 3:
            del targets[state.tasks[1].name]
        if draws > 1:
            state.strategy.look(state.engine, batches, state.optimizer.param_groups[0]["lr"])
        state.optimizer.zero_grad()
        for module in (module for module in state.model.modules() if hasattr(module, "at")):
            module.at(step + 1, 10)
        result = state.strategy.step(state.model, state.tasks, inputs, targets)
        assert all(torch.isfinite(value) for value in [*result.losses.values(), *result.weights.values()])
        state.optimizer.step()
        if state.strategy.weighting.needs_losses_after_update:
            observe_after_update(state.engine, state.strategy.weighting, inputs, targets)
        state.step += 1


def stored(state):
    """The state as a checkpoint holds it: plain types only."""
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def goes_on(cfg, every_parameter=True):
    """``every_parameter`` is trained, and the steps after a round trip are the same to the last bit."""
    data, state = built_from(cfg)
    trained = [p for p in state.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    take_steps(data, state, range(2))
    middle = stored(state)
    take_steps(data, state, range(2, 6))
    changed = [not torch.equal(p, q) for p, q in zip(before, trained, strict=True)]
    assert all(changed) if every_parameter else any(changed)
    end = copy.deepcopy(state.state_dict())
    state.load_state_dict(middle)  # in place of all that the last steps have left
    take_steps(data, state, range(2, 6))
    assert same(end, state.state_dict())
