"""Whether everything runs on the device, gives the CPU's gradients, and does not wait for it."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from problems import Problem, problem
from steps import balanced
from torch import Tensor

from mtl.config import load
from mtl.config.build import build
from mtl.engine.accumulation import RecomputedChunks
from mtl.engine.engine import Engine
from mtl.engine.precision import Precision
from mtl.rules import MGDA
from mtl.runs.files import read_metrics
from mtl.strategies import Detached, Naive, Strategy
from mtl.system import environment
from mtl.system.timer import StepTimer
from mtl.train import train
from mtl.training.loaders import DeviceBatches, train_batches
from mtl.training.schedule import Plan
from mtl.training.update import Update
from mtl.weightings import Equal

Trials = dict[str, Callable[[], dict[str, Any]]]
SMALL = [
    "data.image_size=16", "data.batch_size=8", "+data.pairs_per_digit=1", "backbone.name=test_resnet",
    "tracker=jsonl", "trainer.limit_val_batches=1", "trainer.examples=0",
]  # fmt: skip
# A strategy of each kind, and the most waits of its plain step.
KINDS = {
    "strategy=naive": 0,
    "strategy=detached": 0,
    "trainer.grad_clip_norm=1": 0,
    "trainer.ema=0.99": 0,
    "weighting=uw": 0,
    "weighting=dwa": 0,
    "weighting=famo": 0,
    "weighting=gradnorm": 1,
    "strategy=mgda": 1,
    "strategy=pcgrad": 1,
    "strategy=mgda strategy.space=parameters": 1,
    "strategy=graddrop": 2,
    "strategy=moco": 2,
    "trainer.precision=fp16": 2,
    "trainer.on_nan=skip": 1,
}
FEW = ("strategy=detached", "strategy=mgda")  # of the tiny form


def device_of(name: str) -> dict[str, Any]:
    """The machine, for the record. ValueError where torch finds no such device."""
    device = environment.find_device(name)
    versions = environment.describe()
    return {"device": environment.device_name(device)} | {key: versions[key] for key in ("torch", "timm", "git")}


# --------------------------------------------------------------------------------------------------------- smoke


def smoke(device: str, tiny: bool) -> Trials:
    """Whole runs of ten steps, then ten steps of every kind of strategy."""
    runs = {"demo": [], "scenes": ["data=scenes"], "transformer": ["data=stdlib", "heads=stdlib"]}
    small = {"demo": SMALL, "scenes": ["data.batch_size=4"], "transformer": ["data.batch_size=4", "data.context=16"]}
    common = [f"device={device}", "tracker=jsonl", "trainer.limit_val_batches=2", "trainer.log_every=5"]
    common += ["trainer.examples=0", f"trainer.max_steps={3 if tiny else 10}"]
    made: Trials = {}
    for name, choices in runs.items():
        if not tiny or name == "demo":
            made[name] = partial(whole_run, [*choices, *(small[name] if tiny else ()), *common])
    return made | {kind: partial(ten_steps, kind, device, tiny) for kind in (FEW if tiny else KINDS)}


def whole_run(choices: list[str]) -> dict[str, Any]:
    """``mtl-train`` with these choices; its last logged line."""
    with tempfile.TemporaryDirectory() as folder:
        train(load(choices), Path(folder))
        row = read_metrics(Path(folder), "train")[-1]
    keys = ("loss/total", "time/step", "time/data", "memory/peak")
    return {key: round(row[key], 5) for key in keys if key in row}


def ten_steps(kind: str, device: str, tiny: bool) -> dict[str, Any]:
    """Ten optimizer steps; they must change the backbone, and leave it finite."""
    with Steps(kind, device) as steps:
        before = [p.detach().clone() for p in steps.state.model.shared_parameters()]
        for _ in range(3 if tiny else 10):
            steps.take()
        after = [p.detach() for p in steps.state.model.shared_parameters()]
    moved = sum((a - b).double().square().sum() for a, b in zip(before, after, strict=True)).sqrt().item()
    return {"ok": 0 < moved < float("inf"), "moved": float(f"{moved:.3g}")}


class Steps:
    """A run's own optimizer steps on the small digits, one by one."""

    def __init__(self, kind: str, device: str) -> None:
        cfg = load([*SMALL, f"device={device}", "trainer.max_steps=1000", *kind.split()])
        parts, self.state = build(cfg)
        plan = Plan.from_data(parts.data, cfg.trainer, cfg.conflict)
        timer = StepTimer(plan.samples_per_step, parts.device, peak=0)
        batches = train_batches(parts.data, cfg, self.state, plan)
        self._batches = DeviceBatches(batches, timer, parts.device, self.state.tasks, cfg.trainer.channels_last)
        self._update = Update(self.state, parts, plan, cfg.trainer, timer)
        self.state.model.train()

    def __enter__(self) -> Steps:
        self._batches.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._batches.__exit__(*error)

    def take(self) -> None:
        """The next one, without a line of metrics."""
        self._update(self._batches, read=False)
        self.state.step += 1


# -------------------------------------------------------------------------------------------------------- parity


def parity(device: str, tiny: bool) -> Trials:
    """The gradient of one step beside that of the same step on the CPU in float64: the relative distance."""
    trunk, tasks, batch = ("test_vit-32", 2, 2) if tiny else ("vit_tiny-64", 4, 16)
    own = problem(trunk, "mlp", tasks, batch)
    strategies = {"detached": Detached(Equal()), "naive": Naive(Equal()), "MGDA": balanced(own, MGDA())}
    reference: dict[str, list[Tensor]] = {}

    def distance(strategy: str, bound: float, variant: str) -> dict[str, Any]:
        if strategy not in reference:
            reference[strategy] = gradients(own, strategies[strategy], "cpu", "float64", tiny)
        found = gradients(own, strategies[strategy], device, variant, tiny)
        pairs = list(zip(reference[strategy], found, strict=True))
        error = sum((a - b).square().sum() for a, b in pairs).sqrt() / sum(a.square().sum() for a, _ in pairs).sqrt()
        return {"ok": bool(error < bound), "relative distance": float(f"{error:.2g}"), "at most": bound}

    bounds = {
        "float32": 5e-3, "float64": 1e-9, "bf16": 0.15, "fp16 with scaler": 0.05, "compile": 5e-3,
        "activation checkpointing": 5e-3, "exact accumulation": 5e-3,
    }  # fmt: skip
    if device == "mps":
        del bounds["float64"]  # it has none
    made = {f"detached, {variant}": partial(distance, "detached", bound, variant) for variant, bound in bounds.items()}
    exact = [variant for variant in ("float32", "float64") if variant in bounds]
    others = [(name, variant) for name in (("MGDA",) if tiny else ("naive", "MGDA")) for variant in exact]
    return made | {f"{name}, {variant}": partial(distance, name, bounds[variant], variant) for name, variant in others}


def gradients(own: Problem, strategy: Strategy, device: str, variant: str, tiny: bool) -> list[Tensor]:
    """Every parameter's gradient after one step of this variant, in float64 on the CPU."""
    dtype = torch.float64 if variant == "float64" else torch.float32
    model = copy.deepcopy(own.model).to(device, dtype)
    precision = Precision()
    if variant == "bf16":
        precision = Precision(torch.bfloat16)
    elif variant == "fp16 with scaler":
        precision = Precision(torch.float16, torch.amp.GradScaler(device, init_scale=1024.0))
        precision.update_scale(torch.device(device))
    elif variant == "compile":
        for module in (model.backbone, *model.heads.values()):
            module.compile(backend="aot_eager" if tiny else "inductor")
    elif variant == "activation checkpointing":
        model.backbone.model.set_grad_checkpointing(True)
    engine = Engine(model, own.tasks, precision)
    if variant == "exact accumulation":
        engine.wrapped = RecomputedChunks(model.backbone, 2)
    targets = {name: target.to(device) for name, target in own.targets.items()}
    strategy.run(engine, own.inputs.to(device, dtype), targets)
    return [p.grad.double().cpu() / precision.scale for p in model.parameters() if p.grad is not None]


# --------------------------------------------------------------------------------------------------------- waits


def waits(device: str, tiny: bool) -> Trials:
    """The waits of a plain step, as CUDA counts them."""
    return {kind: partial(counted, kind, device, KINDS[kind]) for kind in (FEW if tiny else KINDS)}


def counted(kind: str, device: str, most: int) -> dict[str, Any]:
    """Waits of one step after three, and the lines that wait; a step that is to have none must pass torch's error."""
    with Steps(kind, device) as steps:
        for _ in range(3):
            steps.take()
        with sync_debug_mode("warn", device) as caught:
            steps.take()
        if most == 0:
            with sync_debug_mode("error", device):
                steps.take()
    if device != "cuda":
        return {"waits": "counted on CUDA only", "at most": most}
    places = [f"{Path(w.filename).parent.name}/{Path(w.filename).name}:{w.lineno}" for w in caught]
    return {"ok": len(places) <= most, "waits": len(places), "at most": most, "where": " ".join(places)}


@contextmanager
def sync_debug_mode(mode: str, device: str) -> Iterator[list[warnings.WarningMessage]]:
    """torch warns of every wait inside, or raises; on another device than CUDA it does neither."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode(mode)
        kept: list[warnings.WarningMessage] = []
        try:
            yield kept
        finally:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
            kept += [w for w in caught if "synchroniz" in str(w.message)]
