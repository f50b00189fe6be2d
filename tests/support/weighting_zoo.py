"""Every weighting by its configuration's name, and a stand-in for a strategy."""

import torch

from mtl import weightings
from mtl.weightings import weight_of

TASKS = ["a", "b", "c"]

BUILD = {
    "equal": lambda tasks: weightings.Equal(),
    "static": lambda tasks: weightings.Static(tasks, {tasks[0]: 0.5}),
    "random": lambda tasks: weightings.Random(tasks, seed=3),
    "dwa": lambda tasks: weightings.DWA(tasks, steps_per_epoch=3),
    "uw": lambda tasks: weightings.UW(tasks),
    "imtl_l": lambda tasks: weightings.IMTLL(tasks),
    "log": lambda tasks: weightings.Log(),
    "gls": lambda tasks: weightings.GLS(),
    "famo": lambda tasks: weightings.FAMO(tasks),
    "stch": lambda tasks: weightings.STCH(tasks, steps_per_epoch=3, warmup_epochs=2),
    "go4align": lambda tasks: weightings.GO4Align(tasks, beta=0.1),
    "gradnorm": lambda tasks: weightings.GradNorm(tasks),
    "uw_so": lambda tasks: weightings.UWSO(),
    "tchebycheff": lambda tasks: weightings.Tchebycheff(tasks, {tasks[0]: 2.0}),
    "pbi": lambda tasks: weightings.PBI(tasks, preference={tasks[0]: 2.0}),
    "cosmos": lambda tasks: weightings.COSMOS(tasks, preference={tasks[0]: 2.0}),
}
LEARNED = ("uw", "imtl_l")
STATEFUL = ("random", "dwa", "uw", "imtl_l", "famo", "stch", "gradnorm", "go4align")


def scalars(tasks, values, dtype=torch.float32):
    return {task: torch.tensor(float(value), dtype=dtype) for task, value in zip(tasks, values, strict=True)}


def batch(step, tasks=TASKS, absent=()):
    """Losses before and after an update, and norms of the unscaled gradients; independent of the absent tasks."""
    draws = torch.rand(3, len(tasks), generator=torch.Generator().manual_seed(step))
    before, after, norms = (0.5 + draws).tolist()
    return (
        {t: torch.tensor(x) for t, x in zip(tasks, before, strict=True) if t not in absent},
        {t: torch.tensor(0.9 * x) for t, x in zip(tasks, after, strict=True) if t not in absent},
        {t: x for t, x in zip(tasks, norms, strict=True) if t not in absent},
    )


def drive(weighting, optimizer, step, tasks=TASKS, absent=()):
    """One training step, as by a strategy and the loop; returns the weights as numbers."""
    before, after, norms = batch(step, tasks, absent)
    if weighting.needs_all_losses:
        weights = weighting.weights(before) if before else {}
    else:
        weights = {task: weight_of(weighting, task, loss) for task, loss in before.items()}
    scaled = torch.tensor([norms[task] * weights[task].item() for task in before], dtype=torch.float64)
    weighting.observe(before, torch.diag(scaled**2) if weighting.needs_gram and before else None)
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()
    if weighting.needs_losses_after_update:
        weighting.observe_after_update(after)
    return {task: weight.item() for task, weight in weights.items()}


def optimizer_of(weighting):
    parameters = list(weighting.parameters())
    return torch.optim.AdamW(parameters, lr=0.05) if parameters else None
