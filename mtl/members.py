"""One model for a whole front: parameters that are a mixture of members, one a task, by a preference.

Every trained parameter theta of a model becomes ``sum_k l_k theta_k``, with the members theta_k, ordinary parameters of
its shape, and the preference l, one share a task. All else of the model stays as it is: this is
``torch.nn.utils.parametrize``, and optimizers, DistributedDataParallel and averages of weights see plain parameters.

Source: Dimitriadis et al. 2023, "Pareto Manifold Learning: Tackling multiple tasks via ensembles of single-task
models".
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization, remove_parametrizations

from mtl.errors import suggestion
from mtl.model import MultiTaskModel, is_named_by

log = logging.getLogger(__name__)

NOISE = 0.01  # of a parameter's own deviation, where members would begin equal


class Preference(nn.Module):
    """The ``shares`` [K] of the ``tasks`` in every mixture of a model, in their order; at first they are equal.

    No part of the model's state: a checkpoint has the members, and each use says its preference.
    """

    shares: Tensor

    def __init__(self, tasks: Sequence[str]) -> None:
        super().__init__()
        self.tasks = list(tasks)
        self.register_buffer("shares", torch.full((len(tasks),), 1 / len(tasks)), persistent=False)

    def set(self, shares: Tensor | Sequence[float]) -> None:
        """Use these shares [K] from now on."""
        self.shares.copy_(torch.as_tensor(shares), non_blocking=True)

    @contextmanager
    def held(self, shares: Tensor | Sequence[float]) -> Iterator[None]:
        """Use these shares within the context."""
        before = self.shares.clone()
        self.set(shares)
        try:
            yield
        finally:
            self.set(before)


class Mixture(nn.Module):
    """K members of one shape -> their sum, weighted by the shares of a preference."""

    def __init__(self, preference: Preference) -> None:
        super().__init__()
        self.preference = preference

    def forward(self, *members: Tensor) -> Tensor:
        """The parameter that the model runs with."""
        first, *others = members
        shares = self.preference.shares
        mixed = shares[0] * first
        for place, member in enumerate(others, 1):
            mixed = torch.addcmul(mixed, shares[place], member)
        return mixed

    def right_inverse(self, parameter: Tensor) -> tuple[Tensor, ...]:
        """K equal members, of which every mixture is the parameter."""
        return tuple(parameter.detach().clone() for _ in self.preference.tasks)


def add_members(model: MultiTaskModel, others: Sequence[nn.Module] = (), part: Sequence[str] = ()) -> None:
    """Make every trained parameter of ``model`` a mixture of one member a task: its own, and those of the ``others``.

    Without others all are its own, for a model whose state is loaded next.

    ``part``: submodules of the backbone, or patterns of its parameters' names, outside of which it has no members; none
    is the whole backbone. What is frozen has one value for all preferences, and so has what decides the sharing in an
    architecture (``sharing_parameters``), as gates. Members that would begin equal, as those of a pretrained backbone,
    get normal noise, a hundredth of their own deviation.

    ValueError for a part that names nothing that is trained; for parameters that two modules hold; for torch's
    recurrent modules, whose parameters cannot be mixtures; and for normalisation by running statistics, unless it is
    frozen: of all preferences together they are wrong at each of them.
    """
    _check_statistics(model)
    preference = Preference(list(model.heads))
    sharing = {p for module in model.modules() for p in getattr(module, "sharing_parameters", tuple)()}
    outside = _outside(model, part)
    noisy = False
    for name, module, key in _trained(model):
        parameter = getattr(module, key)
        if parameter in sharing or name in outside:
            continue
        if isinstance(module, nn.RNNBase):
            raise ValueError(f"{name}: torch's {type(module).__name__} takes no mixture of members for a parameter.")
        register_parametrization(module, key, Mixture(preference))
        for place, other in enumerate(others, 1):
            member = getattr(module.parametrizations[key], f"original{place}")  # type: ignore[index]
            noisy |= _fill(member, other.get_parameter(name))
    if noisy:
        log.info("members begin as copies of one model, with noise of %g of each weight's spread", NOISE)


def preference_of(model: nn.Module) -> Preference | None:
    """The preference that a model with members runs at; None for a model without."""
    return next((module for module in model.modules() if isinstance(module, Preference)), None)


def without_members(model: nn.Module) -> None:
    """Leave the mixture at the present preference in the place of the members: a plain model."""
    for module in list(model.modules()):
        for key, own in list(getattr(module, "parametrizations", {}).items()):
            if isinstance(own, ParametrizationList) and isinstance(own[0], Mixture):
                remove_parametrizations(module, key)


def plain_names(module: nn.Module) -> dict[nn.Parameter, str]:
    """The names of a module's parameters, each member under that of the parameter that it is a member of."""
    member = re.compile(r"\bparametrizations\.(\w+)\.original\d+$")
    return {p: member.sub(r"\1", name) for name, p in module.named_parameters()}


def _check_statistics(model: MultiTaskModel) -> None:
    mode = model.training
    model.train()  # the frozen modules stay in evaluation mode
    moving = [n for n, m in model.named_modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    model.train(mode)
    if moving:
        raise ValueError(
            f"{moving[0]} ({type(model.get_submodule(moving[0])).__name__}) would have one mean and variance for all "
            "preferences, and be wrong at each of them; use a backbone without running statistics, as "
            "backbone=convnext_atto, vit_tiny or mlp, or freeze it."
        )


def _trained(model: MultiTaskModel) -> list[tuple[str, nn.Module, str]]:
    """Every parameter that is trained: its name, the module that holds it, and the key there."""
    found: dict[nn.Parameter, tuple[str, nn.Module, str]] = {}
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{key}" if path else key
            if parameter in found:
                raise ValueError(f"{found[parameter][0]} and {name} are one parameter, which cannot have members.")
            if parameter.requires_grad:
                found[parameter] = name, module, key
    return list(found.values())


def _outside(model: MultiTaskModel, part: Sequence[str]) -> set[str]:
    """The names of the backbone's parameters that are in no part."""
    names = [name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad]
    for pattern in part:
        if not any(is_named_by(name, pattern) for name in names):
            modules = [name for name, _ in model.backbone.named_modules() if name and name.count(".") < 2]
            raise ValueError(f"part={pattern} matches no parameter of the backbone that is trained; "
                             f"{suggestion(pattern, modules)}.")  # fmt: skip
    return {f"backbone.{name}" for name in names if part and not any(is_named_by(name, own) for own in part)}


def _fill(member: nn.Parameter, value: Tensor) -> bool:
    """Give a member, which is a copy of the first one, its value; whether noise had to tell them apart."""
    with torch.no_grad():
        if member.numel() == 1 or not torch.equal(member, value):
            member.copy_(value)
            return False
        spread = member.std()
        member.add_(NOISE * spread * torch.randn_like(member))
        return bool(spread > 0)
