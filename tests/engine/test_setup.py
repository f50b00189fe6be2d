"""A model that is compiled, checkpointed or laid out otherwise computes the same."""

import functools
import logging
from collections import Counter

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from mtl.backbones import Timm
from mtl.config import load
from mtl.config.build import build
from mtl.engine import setup
from mtl.errors import ConfigError
from mtl.evaluate import evaluate_checkpoint
from mtl.runs.files import read_metrics
from mtl.system.memory import PeakMemory
from mtl.train import train

RUN = [
    "data.image_size=16", "data.batch_size=6", "device=cpu", "+data.pairs_per_digit=1", "trainer.max_steps=6",
    "trainer.val_every=3", "trainer.limit_val_batches=2", "trainer.log_every=1", "tracker=jsonl", "conflict.every=1",
]  # fmt: skip


class Own(nn.Sequential):
    """Its code is not torch's: older versions leave their own modules uncompiled."""

    def forward(self, x):
        return super().forward(x)


class Small(Own):
    """A trunk that is traced in no time: timm's is compiled once, with one strategy."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())


SMALL = ["~backbone", "+backbone._target_=tests.engine.test_setup.Small"]


def one_step(*options, strategy="detached"):
    _, state = build(load([*RUN, f"strategy={strategy}", *options]))
    state.model.train()
    inputs, targets = torch.randn(6, 1, 16, 16), {"left": torch.arange(6), "right": torch.arange(6)}
    if "trainer.channels_last=true" in options:
        inputs = inputs.to(memory_format=torch.channels_last)
    result = state.strategy.run(state.engine, inputs, targets, measure=True, audit=True)
    return {name: p.grad for name, p in state.model.named_parameters()}, result, dict(state.model.named_buffers())


def assert_close(a, b, tolerance):
    for name in a:
        one, other = a[name].double(), b[name].double()
        assert torch.allclose(one, other, atol=tolerance * one.abs().max().item() + 1e-7), name


@pytest.mark.parametrize("options", [["strategy=detached"], ["strategy=graddrop", "strategy.space=parameters"]])
def test_a_fused_optimizer_steps_as_another_one_where_channels_are_last(options):
    """It takes a gradient for one that lies in memory as its parameter does."""
    weights = {}
    for fused in ("true", "false"):
        torch.manual_seed(0)
        _, state = build(
            load(
                [
                    *RUN,
                    *options,
                    "trainer.channels_last=true",
                    "optimizer=sgd",
                    "optimizer.lr=1",
                    f"+optimizer.fused={fused}",
                ]
            )
        )
        before = [p.detach().clone() for p in state.model.parameters()]
        inputs, targets = torch.randn(6, 1, 16, 16), {"left": torch.arange(6), "right": torch.arange(6)}
        state.strategy.run(state.engine, inputs.to(memory_format=torch.channels_last), targets)
        state.optimizer.step()
        weights[fused] = dict(state.model.named_parameters())
        assert any(not p.is_contiguous() for p in before)
        assert any(not torch.equal(a, b) for a, b in zip(before, state.model.parameters(), strict=True))
    assert_close(weights["false"], weights["true"], 1e-5)


@pytest.mark.parametrize("strategy", ["naive", "detached", "mgda", "graddrop", "moco"])
def test_activation_checkpointing_changes_nothing(strategy):
    plain, checkpointed = (one_step(*o, strategy=strategy) for o in ([], ["trainer.grad_checkpointing=true"]))
    assert_close(plain[0], checkpointed[0], 1e-4)
    assert torch.allclose(plain[1].gram, checkpointed[1].gram, rtol=1e-4)
    assert_close(plain[2], checkpointed[2], 1e-5)  # the running statistics have moved once


def test_it_keeps_fewer_activations():
    peaks = []
    for options in ([], ["trainer.grad_checkpointing=true"]):
        _, state = build(load([*RUN, "data.image_size=64", *options]))
        with PeakMemory() as memory:
            state.engine.features(torch.randn(6, 1, 64, 64))
        peaks.append(memory.peak)
    assert peaks[1] < 0.8 * peaks[0]


class Several(nn.Module):
    """Timm models side by side and further in; ``last``: the name of one of them."""

    def __init__(self, in_channels, last="test_resnet"):
        super().__init__()
        self.columns = nn.ModuleList(Timm("test_resnet", in_channels=in_channels) for _ in range(2))
        self.inside = nn.Sequential(nn.Identity(), nn.Sequential(Timm(last, in_channels=in_channels)))

    def forward(self, x):
        return torch.cat([*(column(x) for column in self.columns), self.inside(x)], 1)


SEVERAL = ["~backbone", "+backbone._target_=tests.engine.test_setup.Several"]


def test_activations_of_every_model_inside_are_recomputed():
    plain, checkpointed = (one_step(*SEVERAL, *o) for o in ([], ["trainer.grad_checkpointing=true"]))
    assert_close(plain[0], checkpointed[0], 1e-4)
    assert_close(plain[2], checkpointed[2], 1e-5)
    runs = {}
    for options in ([], ["trainer.grad_checkpointing=true"]):
        _, state = build(load([*RUN, *SEVERAL, *options]))
        calls = runs[bool(options)] = Counter()
        for name, module in state.model.backbone.named_modules():
            if name.endswith("layer1.0.conv1"):  # of each ResNet
                module.register_forward_hook(lambda *_, name=name, calls=calls: calls.update([name]))
        state.strategy.run(state.engine, torch.randn(6, 1, 16, 16), {"left": torch.arange(6), "right": torch.arange(6)})
    assert list(runs[False].values()) == [1] * 3 and list(runs[True].values()) == [2] * 3


@pytest.mark.parametrize("strategy", ["naive", "detached", "mgda"])
def test_channels_last(strategy):
    plain, other = (one_step(*o, strategy=strategy) for o in ([], ["trainer.channels_last=true"]))
    assert_close(plain[0], other[0], 1e-4)
    convolution = next(g for g in other[0].values() if g.dim() == 4 and g.shape[1] > 1 and g.shape[2] > 1)
    assert convolution.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def backend(request, monkeypatch):
    """torch.compile by the backend that only traces, which is fast, and by its own."""
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend=request.param))
    torch._dynamo.reset()
    yield request.param
    torch._dynamo.reset()


@pytest.mark.parametrize("strategy", ["naive", "detached", "mgda", "moco"])
def test_compiled_it_computes_the_same(strategy, backend):
    trunk = [] if strategy == "detached" else SMALL
    plain, compiled = (one_step(*trunk, *o, strategy=strategy) for o in ([], ["trainer.compile=true"]))
    assert_close(plain[0], compiled[0], 1e-3)
    assert torch.allclose(plain[1].gram, compiled[1].gram, rtol=1e-3)
    assert torch.allclose(plain[1].audit.parameters, compiled[1].audit.parameters, rtol=1e-3, atol=1e-6)


def test_many_heads_of_different_widths_are_compiled_once(backend):
    """More than torch's limit of 8 for one class's code, beyond which it would go on uncompiled."""
    tasks = ["left", "right", "sum", "parity", "left_parity"]
    parts, state = build(load([*RUN, *SMALL, "trainer.compile=true"]))
    model = state.model
    widths = {f"{name}{i}": 5 + i + 10 * k for k, name in enumerate(tasks) for i in (0, 1)}
    features = model.backbone(torch.randn(2, 1, 16, 16)).shape[1]
    for name, width in widths.items():
        model.heads[name] = Own(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, 3))
    for head in ("left", "right"):
        del model.heads[head]
    torch._dynamo.reset()
    counters.clear()
    setup._compile(model)
    found = [type(parts.tasks[0])(name, nn.CrossEntropyLoss()) for name in widths]
    inputs, targets = torch.randn(6, 1, 16, 16), {name: torch.zeros(6, dtype=torch.int64) for name in widths}
    seen = []
    for _ in range(3):
        state.strategy.step(model, found, inputs, targets, measure=True)
        seen.append(counters["stats"]["unique_graphs"])
    assert seen == [11] * 3


def test_compiling_again_is_said(backend, caplog):
    _, state = build(load([*RUN, *SMALL, "trainer.compile=true"]))
    state.model.train()
    watch = setup.RecompileWarning(state.model, warm_up=2)
    with caplog.at_level(logging.WARNING):
        for step, size in enumerate([6, 6, 6, 4], 1):
            state.engine.features(torch.randn(size, 1, 16, 16))
            watch.check(step)
    (words,) = [r.getMessage() for r in caplog.records if r.name == "mtl.engine.setup"]
    assert words.startswith("trainer.compile: torch has compiled 1 more graphs in step 4")


def test_an_evaluation_is_not_compiled(backend, tmp_path):
    train(load([*RUN, *SMALL, "trainer.compile=true"]), tmp_path / "a")
    (row,) = read_metrics(tmp_path / "a", "test")
    own = evaluate_checkpoint(tmp_path / "a" / "checkpoints" / "best.pt", "test")
    assert own == {name: row[name] for name in own}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["~backbone", "+backbone._target_=tests.engine.test_precision.Features", "trainer.grad_checkpointing=true"],
         "trainer.grad_checkpointing=true: Features has no set_grad_checkpointing; leave it out, or use"),
        ([*SEVERAL, "+backbone.last=dla46x_c", "data.image_size=32", "trainer.grad_checkpointing=true"],
         "trainer.grad_checkpointing=true: timm's DLA has no activation checkpointing."),
        (["trainer.shard=backbone"], "trainer.shard=backbone needs more than one process: trainer.devices=…."),
        (["trainer.shard=all", "trainer.precision=fp16"], "trainer.shard=all needs trainer.precision=bf16 or 32, not"),
        (["trainer.shard=all", "conflict.audit_every=5"], "trainer.shard=all: no rank has whole rows over the"),
        (["trainer.precision=64"], "trainer.precision=64 must be one of 32, bf16, fp16."),
        (["trainer.accumulate=all"], "trainer.accumulate=all must be one of micro, exact."),
        (["trainer.devices=0"], "trainer.devices=0 must be 1 or more."),
        (["device=cuda:7"], "device=cuda:7 is not on this machine; there are"),
        (["device=gpu"], "device=gpu must be auto, cpu, cuda, cuda:<number>, xpu, xpu:<number> or mps."),
    ],
)  # fmt: skip
def test_mistakes(options, words):
    with pytest.raises(ConfigError) as error:
        build(load([*RUN, *options]))
    assert str(error.value).startswith(words)
