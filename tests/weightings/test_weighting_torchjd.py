"""Agreement with the scalarizers of TorchJD that compute the same."""

import pytest
import torch
from support.weighting_zoo import TASKS, scalars

from mtl.weightings import COSMOS, DWA, FAMO, GLS, IMTLL, PBI, UW, weight_of
from mtl.weightings.stch import STCH

scalarization = pytest.importorskip("torchjd.scalarization")


def losses_of(step):
    return 0.2 + 3 * torch.rand(3, generator=torch.Generator().manual_seed(step))


def theirs(scalarizer, losses):
    leaves = losses.clone().requires_grad_()
    scalarizer(leaves).backward()
    return leaves.grad


def ours(weighting, losses):
    named = dict(zip(TASKS, losses.unbind(), strict=True))
    if weighting.needs_all_losses:
        return torch.stack(list(weighting.weights(named).values()))
    return torch.stack([weight_of(weighting, task, loss) for task, loss in named.items()])


def test_the_geometric_mean():
    torch.testing.assert_close(ours(GLS(), losses_of(0)), theirs(scalarization.GeometricMean(), losses_of(0)))


@pytest.mark.parametrize(("build", "other"), [(UW, "UW"), (IMTLL, "IMTLL")])
def test_learned_scales_through_training(build, other):
    mine, reference = build(TASKS), getattr(scalarization, other)(3)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (mine, reference)]
    for step in range(20):
        torch.testing.assert_close(ours(mine, losses_of(step)), theirs(reference, losses_of(step)))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert ours(mine, losses_of(0)).std() > 0.01


def test_dwa_over_five_epochs():
    mine, reference = DWA(TASKS, steps_per_epoch=3), scalarization.DWA()
    for step in range(15):
        torch.testing.assert_close(ours(mine, losses_of(step)), theirs(reference, losses_of(step)))
        mine.observe(dict(zip(TASKS, losses_of(step).unbind(), strict=True)), None)
        if step % 3 == 2:
            reference.step()
    assert ours(mine, losses_of(0)).std() > 0.01


def test_famo_through_training():
    mine = FAMO(TASKS, min_losses={"b": 0.1})
    reference = scalarization.FAMO(3, min_losses=torch.tensor([0.0, 0.1, 0.0]))
    for step in range(20):
        before, after = losses_of(step), losses_of(1000 + step)
        torch.testing.assert_close(ours(mine, before), theirs(reference, before), rtol=1e-4, atol=1e-6)
        mine.observe(dict(zip(TASKS, before.unbind(), strict=True)), None)
        mine.observe_after_update(dict(zip(TASKS, after.unbind(), strict=True)))
        reference.update(after)
    assert mine.logits.std() > 0.01


@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_stch_of_the_relative_log_losses(mu):
    """TorchJD lacks the multi-task form: K times its smooth maximum of log(L / nadir), with preferences of one."""
    mine = STCH(TASKS, steps_per_epoch=1, mu=mu, warmup_epochs=1)
    nadir = losses_of(1)
    mine.observe(scalars(TASKS, nadir.tolist()), None)
    smooth = scalarization.STCH(mu, weights=torch.ones(3))
    expected = theirs(lambda L: 3 * smooth((L / nadir).log()), losses_of(0))
    torch.testing.assert_close(ours(mine, losses_of(0)), expected)


def test_the_scalarizations_of_a_preference():
    preference = torch.tensor([2.0, 1.0, 0.5])
    shares = preference / preference.sum()
    torch.testing.assert_close(
        ours(COSMOS(TASKS, 0.3, preference.tolist()), losses_of(0)),
        theirs(scalarization.COSMOS(0.3, shares), losses_of(0)),
    )
    # theirs goes along the given direction, ours along the one where preference times loss is the same
    torch.testing.assert_close(
        ours(PBI(TASKS, 0.7, preference.tolist()), losses_of(0)),
        theirs(scalarization.PBI(0.7, 1 / preference), losses_of(0)),
    )
