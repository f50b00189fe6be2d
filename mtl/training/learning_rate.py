"""The learning rate of every group of parameters over a run: its schedule, and what is wrong with one, before it."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from mtl.errors import ConfigError, first_line, require
from mtl.training.schedule import Plan, step_plateau, step_scheduler

log = logging.getLogger(__name__)

LOOKAHEAD = 100_000  # so many steps of a schedule are looked at before the run, about a second
PEAKS = ("max_lr", "base_lr")  # torch's names for rates that replace those of the groups
FLOORS = ("warmup_lr_init", "lr_min", "eta_min", "min_lr")  # torch's and timm's for absolute rates

MakeScheduler = Callable[[torch.optim.Optimizer], Any]


class WarmupCosine(LRScheduler):
    """A linear warm-up onto half a cosine, which both are fractions of each group's own rate.

    With T the ``total_steps``, W the ``warmup_steps`` and ``own`` the rate of a group, step t = 0, 1, … has the rate ::

        t < W:   own (s + (1 - s) t / W)                        s = start_factor
        t >= W:  own (e + (1 - e) (1 + cos(pi t / T)) / 2)      e = end_factor

    so that no rate is above ``own``, and 0 stays 0. The rate is a function of the step: a resumed run may
    have another length. The cosine is that of Loshchilov & Hutter 2017, "SGDR", as timm's CosineLRScheduler has it.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        total_steps: int,
        warmup_steps: int = 0,
        start_factor: float = 0.0,
        end_factor: float = 0.0,
    ) -> None:
        require("total_steps", total_steps, "1 or more", total_steps >= 1)
        require("warmup_steps", warmup_steps, "0 or more", warmup_steps >= 0)
        require("start_factor", start_factor, "from 0 to 1", 0 <= start_factor <= 1)
        require("end_factor", end_factor, "from 0 to 1", 0 <= end_factor <= 1)
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        self.start_factor, self.end_factor = start_factor, end_factor
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """The rate of every group in the step to come."""
        return [self._rate(float(own), self.last_epoch) for own in self.base_lrs]

    def _rate(self, own: float, step: int) -> float:
        if step < self.warmup_steps:
            start = self.start_factor * own
            return start + step * ((own - start) / self.warmup_steps)
        end, done = self.end_factor * own, min(step, self.total_steps)
        return end + 0.5 * (own - end) * (1 + math.cos(math.pi * done / self.total_steps))


def check_schedule(
    make_scheduler: MakeScheduler, settings: Mapping[str, Any], optimizer: torch.optim.Optimizer, plan: Plan
) -> None:
    """Log the rates that a schedule will give each group; ConfigError where they are not those that were asked for.

    The schedule is tried on an optimizer that has no model. Rates that follow each group's own rate need no check. Of
    absolute rates, none may raise a group above its own rate, train a group whose rate is 0, or be one for groups
    whose rates differ. ``settings`` is ``cfg.scheduler``.
    """
    names = [group["name"] for group in optimizer.param_groups]
    own = [float(group["lr"]) for group in optimizer.param_groups]
    rates = _planned_rates(make_scheduler, optimizer, plan, 1.0)
    halved = _planned_rates(make_scheduler, optimizer, plan, 0.5)
    log.info("learning rates (first, highest): %s", _in_words(names, rates))
    relative = all(
        abs(half - 0.5 * rate) <= 1e-4 * own[i]
        for row, half_row in zip(rates, halved, strict=True)
        for i, (rate, half) in enumerate(zip(row, half_row, strict=True))
    )
    if relative:
        _warn_of_short_run(own, rates, plan)
    else:
        _check_absolute(settings, names, own, rates)


def _planned_rates(
    make_scheduler: MakeScheduler, optimizer: torch.optim.Optimizer, plan: Plan, factor: float
) -> list[list[float]]:
    """The rate of every group in every step, with the groups' own rates times ``factor``, if the model never improves.

    The first LOOKAHEAD steps of a longer run.
    """
    stand_in, rates = _StandIn(optimizer, factor), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the schedule of the run itself says the same
        scheduler = make_scheduler(stand_in)
        try:
            for step in range(1, min(plan.steps, LOOKAHEAD) + 1):
                rates.append([float(group["lr"]) for group in stand_in.param_groups])
                stand_in.step()
                step_scheduler(scheduler, step)
                if plan.validates(step):
                    step_plateau(scheduler, step // plan.val_every, 1.0)
        except ValueError as error:
            raise ConfigError(f"scheduler: step {step} of {plan.steps}: {first_line(error)}") from error
    return rates


class _StandIn(torch.optim.Optimizer):
    """An optimizer with the groups of another one and one number in each, which never changes."""

    def __init__(self, optimizer: torch.optim.Optimizer, factor: float) -> None:
        groups = [
            {**group, "lr": factor * float(group["lr"]), "params": [nn.Parameter(torch.zeros(()))]}
            for group in optimizer.param_groups
        ]
        super().__init__(groups, optimizer.defaults)

    def step(self, closure: Any = None) -> Any:
        """Do nothing."""


def _check_absolute(
    settings: Mapping[str, Any], names: Sequence[str], own: Sequence[float], rates: Sequence[Sequence[float]]
) -> None:
    kind = str(settings["_target_"]).rsplit(".", 1)[-1]
    peaks = [max(row[i] for row in rates) for i in range(len(own))]
    for key in PEAKS:  # rates that replace the groups' own
        if isinstance(settings.get(key), int | float) and len(set(own)) > 1:
            each = ", ".join(f"{settings[key] * rate / max(own):g}" for rate in own)
            raise ConfigError(
                f"scheduler.{key}={settings[key]} is one rate for {' and '.join(names)}, whose own rates are "
                f"{' and '.join(f'{rate:g}' for rate in own)}; write one for each: scheduler.{key}=[{each}]."
            )
    given = ", ".join(f"scheduler.{key}={settings[key]}" for key in (*FLOORS, *PEAKS) if settings.get(key))
    what = f"{given} is absolute" if given else f"scheduler: {kind} has absolute rates"
    for name, rate, peak in zip(names, own, peaks, strict=True):
        if rate == 0 < peak or (peak > 1.001 * rate and settings.get("max_lr") is None):
            raise ConfigError(
                f"{what}, and {kind} raises the learning rate of the {name} from its own, {rate:g}, to {peak:g}; "
                "leave it out, or use scheduler=cosine, whose start_factor and end_factor are fractions of each rate."
            )
    trained = [i for i, rate in enumerate(own) if rate > 0]
    apart = max(max(f) - min(f) for row in rates if (f := [row[i] / own[i] for i in trained]))
    if apart > 0.01 and not any(settings.get(key) for key in PEAKS):
        log.warning(
            "%s: the ratio between the learning rates of %s does not stay that of optimizer.groups, for %s gives them "
            "the same absolute rate at times; scheduler=cosine keeps it.", what, " and ".join(names), kind,
        )  # fmt: skip


def _warn_of_short_run(own: Sequence[float], rates: Sequence[Sequence[float]], plan: Plan) -> None:
    first = next((i for i, rate in enumerate(own) if rate > 0), None)
    if first is None or plan.steps > LOOKAHEAD or plan.is_dry_run:
        return
    over_time = [row[first] for row in rates]
    rises = all(a < b for a, b in pairwise(over_time))
    if rises and over_time[-1] < own[first]:
        log.warning(
            "the run ends within the warm-up of its learning rate: in its %d steps the rate rises to %.3g and never "
            "reaches %g; train longer, or make the warm-up shorter, as by the warmup_steps of scheduler=cosine.",
            plan.steps, over_time[-1], own[first],
        )  # fmt: skip


def _in_words(names: Sequence[str], rates: Sequence[Sequence[float]]) -> str:
    # Groups of one name differ in the weight decay alone.
    each = {name: f"{name} {rates[0][i]:g}, {max(row[i] for row in rates):g}" for i, name in enumerate(names)}
    return "; ".join(each.values())
