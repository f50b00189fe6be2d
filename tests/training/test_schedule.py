import pytest

from mtl.config import load
from mtl.training.schedule import Plan

SAMPLES = 100
DATA = type("Data", (), {"train": range(SAMPLES), "batch_size": 8})


def planned(*overrides, data=DATA):
    cfg = load(["trainer.max_steps=null", "trainer.val_every=null", *overrides])
    return Plan.from_data(data, cfg.trainer, cfg.conflict)


def steps(due, plan):
    return [step for step in range(1, plan.steps + 1) if due(step)]


def test_epochs_and_limits():
    def counts(*overrides, data=DATA):
        plan = planned(*overrides, data=data)
        return plan.per_epoch, plan.steps, plan.val_every, plan.checkpoint_every

    assert counts("trainer.max_epochs=3") == (12, 36, 12, 12)
    assert counts("trainer.max_epochs=3", "trainer.max_steps=20") == (12, 20, 12, 12)
    assert counts("trainer.max_epochs=3", "trainer.limit_train_batches=5") == (5, 15, 5, 5)
    assert counts("trainer.max_steps=7", "trainer.val_every=2", "trainer.checkpoint_every=3") == (12, 7, 2, 3)
    assert counts("trainer.fast_dev_run=true")[1] == 1
    large = type("Data", (), {"train": range(SAMPLES), "batch_size": 1000})
    assert counts("trainer.max_epochs=2", data=large)[:2] == (1, 2)


@pytest.mark.parametrize(("kind", "batches"), [("micro", (8, 3)), ("exact", (24, 1))])
def test_accumulated_batches_make_one_step(kind, batches):
    plan = planned("trainer.max_epochs=2", "trainer.accumulate_grad_batches=3", f"trainer.accumulate={kind}")
    assert (plan.batch_size, plan.batches) == batches and plan.samples_per_step == 24
    assert plan.per_epoch == 4 and plan.steps == 8 and plan.epoch(6) == 1.5
    with pytest.raises(ValueError, match="accumulate_grad_batches=13 must be at most 12, the batches of an epoch"):
        planned("trainer.max_epochs=2", "trainer.accumulate_grad_batches=13")


def test_what_is_due_in_a_step():
    """The first and the last step are logged and measured, and the last is validated."""
    plan = planned(
        "trainer.max_steps=11", "trainer.log_every=4", "conflict.every=5", "conflict.audit_every=3",
        "trainer.val_every=6", "trainer.checkpoint_every=2", "trainer.patience=2",
    )  # fmt: skip
    assert steps(plan.measures, plan) == [1, 5, 10, 11]
    assert steps(plan.audits, plan) == [3, 6, 9]
    assert steps(plan.logs, plan) == [1, 3, 4, 5, 6, 8, 9, 10, 11]
    assert steps(plan.prints, plan) == [1, 11]
    assert steps(plan.validates, plan) == [6, 11]
    assert steps(plan.saves, plan) == [2, 4, 6, 8, 10]
    assert plan.patience == 2
    never = planned("trainer.max_steps=11", "conflict.every=null")
    assert not steps(never.measures, never) and not steps(never.audits, never) and never.patience is None
