"""How often a training step waits for its device: counted on a device of our own, tests/support/device.py."""

import pytest
import torch
from support.composing import configuration
from support.device import META, OnDevice, Training, Waits
from support.exactness import differing
from torch import nn

from mtl.gradients.transfer import HostCopy, send
from mtl.runs import checkpoint
from mtl.runs.files import read_metrics
from mtl.system.signals import Preempted
from mtl.system.timer import StepTimer
from mtl.tasks import Task
from mtl.train import train
from mtl.training import loaders
from mtl.training.nonfinite import NotFinite


@pytest.mark.parametrize(
    ("choices", "waits"),
    [
        ("strategy=naive", 0),
        ("strategy=detached", 0),
        ("trainer.grad_clip_norm=1", 0),
        ("trainer.ema=0.9", 0),
        ("trainer.accumulate_grad_batches=2", 0),
        ("optimizer=sgd", 0),
        ("weighting=static", 0),
        ("weighting=uw", 0),
        ("weighting=dwa", 0),
        ("weighting=random", 0),
        ("weighting=stch", 0),
        ("weighting=famo", 0),
        ("weighting=gradnorm", 1),  # the Gram matrix
        ("strategy=mgda", 1),  # the Gram matrix
        ("strategy=cagrad", 1),
        ("strategy=mgda strategy.space=parameters", 1),
        ("strategy=mgda strategy.space=features_sum", 1),
        ("strategy=mgda strategy.space=parameters strategy.groups=layer", 1),  # those of all groups together
        ("strategy=epo", 2),  # and the losses
        ("strategy=graddrop", 2),  # on rows: and the weights that it logs
        ("strategy=moco", 2),  # and the Gram matrix of its averages
        ("strategy=db_mtl", 2),  # and their norms
        ("strategy=trimmed_mean", 2),
        ("strategy=excess_mtl", 2),
        ("optimizer=lamb", 1),  # it takes no answer on the device
        ("trainer.on_nan=skip", 1),  # the state of before is put back at once
    ],
)
def test_the_waits_of_a_plain_step(choices, waits):
    *_, last = Training(*choices.split()).steps(3, read=False)
    assert last.count == waits, last.places


def test_the_waits_of_other_steps():
    training = Training("strategy=detached")
    counts = {}
    for kind, asked in {"logged": {}, "measured": {"measure": True}, "audited": {"audit": True}}.items():
        counts[kind] = training.steps(1, **asked)[0].count  # its numbers are read at once, in one copy
    assert counts == {"logged": 1, "measured": 2, "audited": 4}
    *_, last = Training("strategy=mgda", "strategy.every=4").steps(3, read=False)
    assert last.count == 0, last.places


def test_the_device_sees_every_wait():
    value, flags, host = OnDevice(torch.arange(4.0)), OnDevice(torch.tensor([True, False, True, True])), torch.ones(4)
    waiting = {
        "item": lambda: value[0].item(),
        "bool": lambda: bool(flags.any()),
        "tolist": lambda: value.tolist(),
        "to the host": lambda: value.cpu(),
        "to the device": lambda: host.to(META),
        "copy_": lambda: value.copy_(host),
        "mask": lambda: value[flags],
        "indices of the host": lambda: value[torch.tensor([0, 2])],
        "nonzero": lambda: value.nonzero(),
    }
    free = {
        "arithmetic": lambda: (value * 2 + 1.5).sum().sqrt(),
        "where": lambda: torch.where(flags, value, 0),
        "made there": lambda: torch.zeros(3, device=META),
        "sent": lambda: send(host, META),
        "on its way": lambda: HostCopy(value),
    }
    for actions, count in ((waiting, 1), (free, 0)):
        for name, act in actions.items():
            with Waits() as waits:
                act()
            assert waits.count == count, name
    for act in (lambda: torch.tensor([1.0], device=META), lambda: value[[0, 2]]):
        with pytest.raises(AssertionError, match="a list"), Waits():
            act()


def test_numbers_that_are_sent_and_read_are_the_same():
    values = torch.randn(5, dtype=torch.float64)
    assert HostCopy(OnDevice(values)).read() == values.tolist()
    with Waits():
        sent = send(values, META)
    assert isinstance(sent, OnDevice) and sent.tolist() == values.tolist()


@pytest.mark.parametrize("choice", ["strategy=naive", "strategy=detached", "strategy=mgda", "weighting=uw"])
def test_a_device_without_float64_trains(monkeypatch, choice):
    for place in ("gradients.gram", "training.nonfinite", "training.step_metrics"):
        monkeypatch.setattr(f"mtl.{place}.widest", lambda device: torch.float32)
    Training(choice, lacks_float64=True).steps(2, measure=True)


def test_a_device_without_float64_is_told_from_others():
    with pytest.raises(TypeError, match="float64"):
        Training("strategy=naive", lacks_float64=True).steps(1)


# ------------------------------------------------------------------------------- a step that is not finite, read late

LATE = [
    "~backbone", "+backbone._target_=support.restless.Backbone", "data._target_=support.restless.AugmentedDigits",
    "data.image_size=8", "data.batch_size=6", "+data.pairs_per_digit=1", "trainer.max_steps=9", "trainer.val_every=9",
    "trainer.keep=9", "trainer.limit_val_batches=1", "trainer.log_every=50", "trainer.ema=0.9", "tracker=jsonl",
    "device=cpu",
]  # fmt: skip


def broken(kind, step=3):
    return f"++losses.left={{_target_: support.restless.BreakingLoss, kind: '{kind}', first: {step}, last: {step}}}"


@pytest.mark.parametrize("strategy", ["naive", "detached", "mgda", "moco"])
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nan", "step 3: the loss of left is nan."),
        ("gradient", "step 3: the gradient of left with respect to the features is not finite."),
    ],
)
def test_a_step_that_is_read_late_is_named_all_the_same(tmp_path, strategy, kind, words):
    with pytest.raises(NotFinite) as caught:
        train(configuration(*LATE, f"strategy={strategy}", broken(kind), "trainer.checkpoint_every=2"), tmp_path)
    assert str(caught.value) == f"{words} Nothing was updated; trainer.on_nan=skip leaves such steps out."
    assert checkpoint.load(tmp_path)["step"] == 2
    assert [row["step"] for row in read_metrics(tmp_path, "train")] == [1]


def test_a_parameter_is_named_late(tmp_path):
    cfg = configuration(*LATE, "backbone._target_=support.restless.BreakingBackbone", "trainer.checkpoint_every=9")
    with pytest.raises(NotFinite, match=r"step 3: the gradient of backbone.layers.0.weight is not finite, though"):
        train(cfg, tmp_path)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_update_is_left_out_before_anybody_has_read_that_it_must_be(optimizer):
    training = Training(f"optimizer={optimizer}", broken("inf", step=2))
    training.steps(1, read=False)
    learned = [p for group in training.state.optimizer.param_groups for p in group["params"]]
    before = [p.host.clone() for p in learned]
    training.steps(1, read=False)  # launched, and not read
    assert all(torch.equal(p.host, b) for p, b in zip(learned, before, strict=True))
    with pytest.raises(NotFinite, match="step 2: the loss of left is inf"):
        training.steps(1, read=False)
    assert all(torch.equal(p.host, b) for p, b in zip(learned, before, strict=True))
    healthy = Training(f"optimizer={optimizer}")
    healthy.steps(2, read=False)
    assert not torch.equal(healthy.state.optimizer.param_groups[0]["params"][0].host, before[0]), "negative control"


def test_an_error_of_the_next_step_does_not_hide_the_cause():
    training = Training(broken("inf", step=2))
    training.steps(2, read=False)

    def fail(*arguments, **options):
        raise RuntimeError("the next step")

    training.state.strategy.run = fail
    with pytest.raises(NotFinite, match="step 2"):
        training.steps(1)
    healthy = Training()
    healthy.steps(2, read=False)
    healthy.state.strategy.run = fail
    with pytest.raises(RuntimeError, match="the next step"):
        healthy.steps(1)


def test_nor_does_one_of_its_lookahead(monkeypatch):
    """And the device's work on the step before is waited for before the clock stops for the lookahead."""
    bad, healthy = Training(broken("inf", step=2)), Training()
    for training in (bad, healthy):
        training.steps(2, read=False)
        assert training.update._unread is not None

    def fail(*arguments):
        raise RuntimeError("the lookahead")

    monkeypatch.setattr("mtl.training.update.look_ahead", fail)
    with pytest.raises(NotFinite, match="step 2"):
        bad.steps(1, ahead=True)
    with pytest.raises(RuntimeError, match="the lookahead"):
        healthy.steps(1, ahead=True)
    assert healthy.update._unread is None


@pytest.mark.parametrize("bad", [True, False])
def test_a_run_that_is_asked_to_stop_saves_no_step_that_nobody_has_read(tmp_path, bad):
    asked = iter([False, False, False, True])
    cfg = configuration(*LATE, "trainer.checkpoint_every=9", *([broken("inf", step=4)] if bad else []))
    with pytest.raises(NotFinite if bad else Preempted):
        train(cfg, tmp_path, lambda: next(asked))
    assert (tmp_path / "checkpoints" / "last.pt").exists() != bad
    if not bad:
        saved = checkpoint.load(tmp_path)
        assert saved["step"] == 4 and saved["weights"]["steps"] == 4


def test_reading_late_changes_no_bit():
    states = []
    for read in (True, False):
        torch.manual_seed(0)
        training = Training("strategy=mgda", "weighting=uw", "trainer.ema=0.9")
        training.steps(4, read=read)
        training.update.settle()
        states.append(training.state)
    one, two = ({n: p.host for n, p in state.model.named_parameters()} for state in states)
    assert differing(one, two) == []
    assert states[0].weights.state_dict() == states[1].weights.state_dict()


# ------------------------------------------------------------------------------------------------- the next batch


class Stream:
    """A stream of a device whose copies are done at once; what is asked of it is written down."""

    def __init__(self, log):
        self.log = log

    def record_event(self):
        self.log.append("copied")
        return len(self.log)

    def wait_event(self, event):
        self.log.append("waited")


class Module:
    """As torch.cuda, as far as DeviceBatches asks."""

    def __init__(self):
        self.log = []
        self.side, self.current = Stream(self.log), Stream(self.log)

    def Stream(self, device):
        return self.side

    def current_stream(self, device):
        return self.current

    def stream(self, stream):
        return torch.no_grad()


class Source:
    """Three batches, then an error; ``indices`` as of mtl.data.loader.Batches."""

    indices: list

    def __iter__(self):
        for number in range(3):
            self.indices = [number]
            yield torch.full((2,), float(number)), {"a": torch.tensor([number, -100])}
        raise OSError("the fourth batch")


def test_the_next_batch_is_read_ahead_and_its_error_comes_in_its_turn(monkeypatch):
    module = Module()
    monkeypatch.setattr(loaders, "STREAMS", ("meta",))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    monkeypatch.setattr(OnDevice, "record_stream", lambda self, stream: module.log.append("held"), raising=False)
    monkeypatch.setattr("mtl.system.timer.STREAMS", ())
    tasks = [Task("a", nn.CrossEntropyLoss())]
    with Waits() as waits, loaders.DeviceBatches(Source(), StepTimer(2, META, peak=0), META, tasks) as batches:
        for number in range(3):
            inputs, targets = next(batches)
            assert targets.counts == {"a": 1} and batches.indices == [number]
            assert inputs.host.tolist() == [number] * 2
        with pytest.raises(OSError, match="the fourth batch"):
            next(batches)
    assert waits.count == 0, waits.places
    # Each batch is copied before the one before it is handed over, and handed over after its own copies alone.
    assert module.log[:4] == ["copied", "copied", "waited", "held"] and module.log.count("copied") == 3
