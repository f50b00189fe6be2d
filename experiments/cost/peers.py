"""Steps of other libraries on a Problem, driven as their own documentation or trainer does it.

Where a library can be driven better than that, a further row does so. All act on the same model. Heads get the gradient
of their own loss, unless it is said.

TorchJD. ``mtl_backward`` leaves K rows at the trunk's parameters, in chunks by ``torch.vmap`` or one by one, and
``jac_to_grad`` makes a gradient of them: of the concatenated rows, or (``optimize_gramian``) parameter by parameter.
``features``: its rule on K rows that a loop over the detached features collects, then one backward through the trunk.

LibMTL, in the registry's only release, 1.1.5. Its Trainer needs CUDA: here HPS and the weighting are put together, and
the losses into one tensor by their index, as the Trainer does. ``lists``: the losses stay in a list, which spares
backward passes through all heads for each; and the trunk gives a list of K features, which is how ``rep_grad`` knows
that they are the same, and sends one gradient through the trunk and not K. The release is older than torch 2:

- It imports ``torchvision.models.utils``, which is gone: it is shown a module of that name.
- It takes for granted that ``zero_grad`` leaves zeros: the trunk's still does, where LibMTL calls it.
- Its CAGrad is written for three tasks: here is its algorithm for any number.
- Nash_MTL came after it: here is its algorithm, with the authors' solver, which TorchJD has as well: K gradients, one
  more backward of the weighted losses, heads and all, and the trunk's gradient clipped to the norm 1.
- Its MGDA does not count its iterations, and may not end: the step then raises RuntimeError.
"""

from __future__ import annotations

import importlib.util
import signal
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from problems import Problem

try:
    from torchjd import aggregation
    from torchjd.autojac import jac_to_grad, mtl_backward
except ImportError:
    aggregation = None

Step = Callable[[], None]

warnings.filterwarnings("ignore", message="You are solving a parameterized problem that is not DPP")  # Nash_MTL's


def torchjd_steps(problem: Problem) -> dict[str, Step]:
    """TorchJD's, by the name of their row; none where it is not installed."""
    return {name: step for name, step in _torchjd(problem).items() if not isinstance(step, str)}


def libmtl_steps(problem: Problem) -> dict[str, Step]:
    """LibMTL's, by the name of their row; none where it is not installed."""
    return {name: step for name, step in _libmtl(problem).items() if not isinstance(step, str)}


def not_possible(problem: Problem) -> dict[str, str]:
    """The rows that a library cannot do on this problem, and why; a library that is not installed is one row."""
    return {name: step for name, step in (_torchjd(problem) | _libmtl(problem)).items() if isinstance(step, str)}


def _torchjd(problem: Problem) -> dict[str, Step | str]:
    if aggregation is None:
        return {"TorchJD": 'It is not installed: pip install "torchjd[full]".'}
    in_levels, vmap_fails = len(_features(problem)) > 1, _why_vmap_fails(problem)
    made: dict[str, Step | str] = {}
    for rule in (aggregation.UPGrad(), aggregation.MGDA()):
        name = type(rule).__name__
        for chunk in (None, 1, 4) if len(problem.tasks) > 4 else (None, 1):
            for optimize in (False, True) if chunk != 4 else (False,):
                row = f"TorchJD mtl_backward {name}, chunk={chunk}" + ", optimize_gramian" * optimize
                made[row] = _torchjd_at_parameters(problem, rule, chunk, optimize)
                if in_levels:
                    made[row] = "It differentiates each level of the features through the later ones as well."
                elif vmap_fails and chunk != 1:
                    made[row] = f"torch.vmap fails on the trunk's backward: {vmap_fails}"
        made[f"TorchJD {name}, features"] = _torchjd_at_features(problem, rule)
    return made


def _why_vmap_fails(problem: Problem) -> str:
    """What comes of two rows through the trunk at once, where some trunks cannot; nothing where they can."""
    if len(problem.tasks) == 1 or (problem.engine.precision.dtype is None and not problem.model.is_compiled()):
        return ""
    (z,) = _differentiable(problem.engine.features(problem.inputs))[:1]
    parameters = [p for p in problem.model.shared_parameters() if p.requires_grad]
    try:
        torch.vmap(lambda row: torch.autograd.grad(z, parameters, row, allow_unused=True))(torch.stack([z, z]).detach())
    except RuntimeError as error:
        return str(error).strip().split("\n")[0]
    return ""


def _torchjd_at_parameters(problem: Problem, rule: Any, chunk: int | None, optimize: bool) -> Step:
    model, engine = problem.model, problem.engine

    def step() -> None:
        features = engine.features(problem.inputs)
        losses = [engine.loss(task, features, problem.targets[task.name]) for task in problem.tasks]
        mtl_backward(losses, features=_differentiable(features), parallel_chunk_size=chunk)
        shared = [p for p in model.shared_parameters() if getattr(p, "jac", None) is not None]  # without the frozen
        jac_to_grad(shared, rule, optimize_gramian_computation=optimize)

    return step


def _torchjd_at_features(problem: Problem, rule: Any) -> Step:
    engine = problem.engine

    def step() -> None:
        features = engine.features(problem.inputs)
        cut = pytree.tree_map_only(Tensor, lambda z: z.detach().requires_grad_(z.requires_grad), features)
        leaves = _differentiable(cut)
        rows = []
        for task in problem.tasks:
            engine.loss(task, cut, problem.targets[task.name]).backward()
            rows.append(torch.cat([_taken_gradient(leaf).flatten() for leaf in leaves]))
        matrix = torch.stack(rows)
        if matrix.dtype in (torch.bfloat16, torch.float16):  # which its solvers refuse
            matrix = matrix.float()
        parts = rule(matrix).split([leaf.numel() for leaf in leaves])
        directions = [part.view_as(leaf).to(leaf.dtype) for part, leaf in zip(parts, leaves, strict=True)]
        torch.autograd.backward(_differentiable(features), directions)

    return step


def _differentiable(features: Any) -> list[Tensor]:
    return [z for z in pytree.tree_leaves(features) if isinstance(z, Tensor) and z.requires_grad]


def _features(problem: Problem) -> list[Tensor]:
    with torch.no_grad():
        return [z for z in pytree.tree_leaves(problem.engine.features(problem.inputs)) if isinstance(z, Tensor)]


def _taken_gradient(leaf: Tensor) -> Tensor:
    """What the last head left; zero where it does not read this level of the pyramid."""
    gradient, leaf.grad = leaf.grad, None
    return torch.zeros_like(leaf) if gradient is None else gradient


def _libmtl(problem: Problem) -> dict[str, Step | str]:
    if importlib.util.find_spec("LibMTL") is None:
        return {"LibMTL": "It is not installed: pip install LibMTL."}
    weighting = _import_libmtl().weighting
    made: dict[str, Step | str] = {
        "LibMTL EW": _libmtl_step(problem, weighting.EW),
        "LibMTL PCGrad": _libmtl_step(problem, weighting.PCGrad),
        "LibMTL CAGrad": _libmtl_step(problem, CAGrad, calpha=0.5),
        "LibMTL Nash_MTL": "Its solver is TorchJD's, which is not installed.",
    }
    if aggregation is not None:
        made["LibMTL Nash_MTL"] = _libmtl_step(problem, NashMTL)
    mgda = type("MGDA", (EndsInTime, weighting.MGDA), {})
    for kind, rep_grad in (("LibMTL MGDA", False), ("LibMTL MGDA, rep_grad", True)):
        for row, lists in ((kind, False), (f"{kind}, lists", True)):
            made[row] = _libmtl_step(problem, mgda, rep_grad, lists, mgda_gn="none")
            if rep_grad and len(_features(problem)) > 1:
                made[row] = "rep_grad is for features that are one tensor."
    if len(problem.tasks) == 1:
        made |= {row: "Its solver fails on one task." for row in made if "MGDA" in row or "Nash" in row}
    if not all(p.is_contiguous() for p in problem.model.shared_parameters()):
        at_parameters = ("LibMTL PCGrad", "LibMTL CAGrad", "LibMTL MGDA", "LibMTL MGDA, lists")
        made |= dict.fromkeys(at_parameters, "It takes a view of all gradients, which those in channels_last refuse.")
    return made


def _import_libmtl() -> ModuleType:
    name = "torchvision.models.utils"
    sys.modules[name] = ModuleType(name)
    sys.modules[name].load_state_dict_from_url = torch.hub.load_state_dict_from_url
    try:
        return importlib.import_module("LibMTL")
    finally:
        del sys.modules[name]


def _libmtl_step(
    problem: Problem, weighting: type, rep_grad: bool = False, lists: bool = False, **arguments: Any
) -> Step:
    # Without rep_grad a list of features changes nothing, but that a pyramid's levels are not taken for the tasks'.
    model = _libmtl_model(problem, weighting, rep_grad, in_list=lists or not rep_grad)

    def step() -> None:
        with problem.engine.autocast():
            predictions = model(problem.inputs)
            losses = [task.loss(predictions[task.name], problem.targets[task.name]) for task in problem.tasks]
            if not lists:
                kept, losses = losses, torch.zeros(len(losses), device=model.device)
                for i, loss in enumerate(kept):
                    losses[i] = loss
        model.backward(losses, **arguments)
        model.rep, model.rep_tasks = {}, {}  # what rep_grad keeps for no later use

    return step


def _libmtl_model(problem: Problem, weighting: type, rep_grad: bool, in_list: bool) -> Any:
    architecture, base = sys.modules["LibMTL"].architecture.HPS, sys.modules["LibMTL"].weighting.AbsWeighting

    class Model(architecture, weighting, base):
        def zero_grad_share_params(self) -> None:
            self.encoder.zero_grad(set_to_none=False)

    own, names = problem.model, [task.name for task in problem.tasks]
    encoder = InList(own.backbone, len(names)) if in_list else own.backbone
    model = Model(names, lambda: encoder, own.heads, rep_grad, False, next(own.parameters()).device)
    model.init_param()
    return model


class InList(nn.Module):
    """The features, once for each of ``count`` tasks: how LibMTL knows that they are the same."""

    def __init__(self, backbone: nn.Module, count: int) -> None:
        super().__init__()
        self.backbone, self.count = backbone, count

    def forward(self, inputs: Any) -> list[Any]:
        """One tensor, ``count`` times."""
        return [self.backbone(inputs)] * self.count


class EndsInTime:
    """For LibMTL's MGDA: RuntimeError where its solver takes longer than a few seconds."""

    def _find_min_norm_element(self, rows: Tensor, seconds: float = 10.0) -> Tensor:
        def stop(*_: Any) -> None:
            raise RuntimeError(f"LibMTL's MGDA found no end within {seconds} s: it does not count its iterations.")

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return super()._find_min_norm_element(rows)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class CAGrad:
    """LibMTL's of that name, for any number of tasks: g_0 + c |g_0| g_w / |g_w|, divided by 1 + c², its default.

    Source: Liu et al. 2021, algorithm 1: on the simplex, w minimises <g_w, g_0> + c |g_0| |g_w|; SLSQP as LibMTL.
    """

    def backward(self: Any, losses: Tensor, calpha: float) -> None:
        """Leave the gradients."""
        self._compute_grad_dim()
        rows = self._compute_grad(losses, mode="backward")
        gram, equal = (rows @ rows.T).cpu().numpy(), np.full(len(rows), 1 / len(rows))
        radius = calpha * np.sqrt(gram.mean() + 1e-8) + 1e-8
        found = minimize(
            lambda w: w @ gram @ equal + radius * np.sqrt(w @ gram @ w + 1e-8),
            equal,
            bounds=[(0, 1)] * len(rows),
            constraints={"type": "eq", "fun": lambda w: 1 - w.sum()},
        )
        added = (torch.as_tensor(found.x, dtype=rows.dtype, device=rows.device)[:, None] * rows).sum(0)
        direction = rows.mean(0) + radius / (added.norm() + 1e-8) * added
        self._reset_grad(direction / (1 + calpha**2))


class NashMTL:
    """LibMTL's weighting Nash_MTL, with its defaults: the solver runs in every step, and goes on from its last answer.

    Source: Navon et al. 2022, algorithm 1.
    """

    def init_param(self: Any) -> None:
        """Start from equal weights."""
        self.solver = aggregation.NashMTL(self.task_num, max_norm=0.0).weighting

    def backward(self: Any, losses: Tensor) -> None:
        """Leave the gradients."""
        shared = list(self.get_share_params())
        rows = torch.zeros(len(losses), sum(p.numel() for p in shared), device=self.device)
        for row, loss in zip(rows, losses, strict=True):
            gradients = torch.autograd.grad(loss, shared, retain_graph=True)
            torch.cat([gradient.flatten() for gradient in gradients], out=row)
        (self.solver(rows) * losses).sum().backward()
        nn.utils.clip_grad_norm_(self.get_share_params(), 1.0)
