from types import SimpleNamespace

import pytest

from mtl.config import load
from mtl.data.loader import EndlessSampler
from mtl.training.loop import log_plan, warn_of_plan
from mtl.training.schedule import Plan
from mtl.weightings import DWA, STCH, Equal

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
    assert steps(plan.measures, plan) == steps(plan.compares, plan) == [1, 5, 10, 11]
    assert steps(plan.audits, plan) == [3, 6, 9]
    assert steps(plan.logs, plan) == [1, 3, 4, 5, 6, 8, 9, 10, 11]
    assert steps(plan.prints, plan) == [1, 11]
    assert steps(plan.validates, plan) == [6, 11]
    assert steps(plan.saves, plan) == [2, 4, 6, 8, 10]
    assert plan.patience == 2
    assert not steps(plan.relates, plan) and not steps(plan.looks_ahead, plan)
    plan = planned("trainer.max_steps=11", "conflict.every=null", "conflict.affinity_every=4", "conflict.audit_every=3")
    assert steps(plan.relates, plan) == steps(plan.measures, plan) == [1, 3, 4, 6, 8, 9, 11]
    assert steps(plan.looks_ahead, plan) == [3, 6, 9] and not steps(plan.compares, plan)
    never = planned("trainer.max_steps=11", "conflict.every=null")
    assert not steps(never.measures, never) and not steps(never.audits, never) and never.patience is None


@pytest.mark.parametrize(
    ("batch_size", "overrides", "step", "left_out"),
    [
        (8, [], 8, 4),
        (1000, [], 100, 0),
        (64, [], 64, 36),
        (64, ["trainer.limit_train_batches=1"], 64, 0),
        (64, ["trainer.overfit_batches=1"], 64, 0),
        (30, ["trainer.accumulate_grad_batches=2"], 60, 40),
        (30, ["trainer.accumulate_grad_batches=2", "trainer.accumulate=exact"], 60, 40),
    ],
)
def test_the_samples_of_a_step_and_those_that_are_left_out(batch_size, overrides, step, left_out):
    """Against the sampler's own batches."""
    data = type("Data", (), {"train": range(SAMPLES), "batch_size": batch_size})
    plan = planned("trainer.max_epochs=1", *overrides, data=data)
    batches = iter(EndlessSampler(SAMPLES, plan.batch_size, plan.per_epoch * plan.batches, seed=0))
    seen = [len(next(batches)[1]) for _ in range(plan.per_epoch * plan.batches)]
    assert sum(seen[: plan.batches]) == plan.samples_per_step == step
    assert plan.left_out == left_out and (overrides or sum(seen) == SAMPLES - left_out)


@pytest.mark.parametrize(
    ("build", "steps", "words"),
    [
        (lambda: STCH(["a"], 20), 100, "STCH is weighting=log, whatever the preference; the run ends at step 100"),
        (lambda: STCH(["a"], 20), 101, None),
        (lambda: STCH(["a"], 20, warmup_epochs=0), 1, None),
        (lambda: DWA(["a"], 50), 100, "DWA is weighting=equal; the run ends at step 100"),
    ],
    ids=["stch", "stch, longer", "stch without", "dwa"],
)
def test_a_run_that_ends_within_its_weightings_warm_up_is_told(build, steps, words, caplog):
    data = type("Data", (), {"train": range(SAMPLES), "batch_size": 5})
    state = SimpleNamespace(ema=None, strategy=SimpleNamespace(weighting=build()))
    warn_of_plan(state, data, planned(f"trainer.max_steps={steps}", data=data))
    assert caplog.messages == ([f"in its first 100 steps the weighting {words}"] if words else [])


@pytest.mark.parametrize(
    ("batch_size", "ema", "words"),
    [
        (8, None, []),
        (50, None, []),
        (1000, None, []),  # said where the data are checked
        (64, None, ["36 of the 100 training samples are left out of every epoch"]),
        (8, 0.999, ["trainer.ema=0.999 averages over about 1000 steps and the run has 100: at its end the model"]),
        (8, 0.9, []),
    ],
)
def test_what_is_said_before_the_first_step(batch_size, ema, words, caplog):
    data = type("Data", (), {"train": range(SAMPLES), "batch_size": batch_size})
    strategy = SimpleNamespace(weighting=Equal())
    state = SimpleNamespace(ema=ema and SimpleNamespace(decay=ema), strategy=strategy)
    warn_of_plan(state, data, planned("trainer.max_steps=100", data=data))
    assert len(caplog.messages) == len(words) and all(map(str.startswith, caplog.messages, words))
    caplog.clear()
    model = SimpleNamespace(shared_parameters=list, head_parameters=list)
    caplog.set_level("INFO", logger="mtl")
    log_plan(SimpleNamespace(model=model, tasks=[]), data, planned("trainer.max_steps=100", data=data))
    size = min(batch_size, SAMPLES)
    assert f"100 samples / batches of {size} = {SAMPLES // size} steps an epoch; 100 steps = " in caplog.text
