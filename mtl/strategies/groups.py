"""A rule of its own for each group of the trunk's parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mtl.errors import suggestion
from mtl.gradients.cut import Direction
from mtl.gradients.rows import parameter_grams
from mtl.gradients.spaces import ParameterSpace
from mtl.gradients.transfer import send
from mtl.model import MultiTaskModel, is_named_by
from mtl.rules.call import RuleCall

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
REST, COMMON = "(rest)", "(heads)"  # what no pattern names, and what several heads hold


class Part(NamedTuple):
    """The rows over one group's parameters: their ``places`` in ``space``, and the tasks that have a gradient there."""

    name: str
    call: RuleCall
    places: list[int]
    space: ParameterSpace
    gram: Tensor
    alive: list[int]


class Groups(nn.Module):
    """A rule once for each group of the trunk's parameters, with a state of its own in each.

    ``groups``: ``layer``, the parameters that one module holds itself, as its weight and bias; ``block``, those of a
    child of the backbone, or where that is a list of modules, nested or not, of an item of it; or names and patterns as
    those of ``part``, a group each, and what none of them names as one group more. What several heads hold is a group
    too. ``new_call`` makes the call of a copy of ``rule``; the copies' random draws are the same.

    The rule of a group gets the Gram matrix of the rows over the group's parameters. A task whose gradient there is
    zero, as in an expert that it does not read, is absent from it.

    Source: the granularities at which Wang et al. 2021 (GradVac) compare gradients, for any rule.
    """

    def __init__(self, groups: str | Sequence[str], rule: nn.Module, new_call: Callable[[nn.Module], RuleCall]) -> None:
        super().__init__()
        self.groups = groups
        self._new: Callable[[], RuleCall] = lambda: new_call(copy.deepcopy(rule))  # of the rule before its first step
        self.rules, self.calls = nn.ModuleList(), dict[str, RuleCall]()
        self._group_of: dict[nn.Parameter, str] = {}

    def bind(self, model: MultiTaskModel) -> None:
        """Find the groups of a model's parameters; ValueError where ``groups`` does not fit them, or the state."""
        members = parameter_groups(model.backbone, self.groups)
        if common := list(model.common_parameters()):
            members[COMMON] = common
        self._make(members)
        self._group_of = {p: name for name, parameters in members.items() for p in parameters}

    def parts(self, space: ParameterSpace, model: MultiTaskModel) -> list[Part]:
        """The rows of a step, group by group; without groups of which nothing is trained."""
        if not self._group_of:
            self.bind(model)
        places: dict[str, list[int]] = {}
        for place, parameter in enumerate(space.parameters):
            places.setdefault(self._group_of[parameter], []).append(place)
        names = [name for name in self.calls if name in places]
        spaces = [space.part(places[name]) for name in names]
        found = []
        for name, own, gram in zip(names, spaces, parameter_grams([own.rows for own in spaces]), strict=True):
            alive = torch.nonzero(gram.diagonal() != 0).flatten().tolist()
            found.append(Part(name, self.calls[name], places[name], own, gram, alive))
        return found

    def solve(
        self, parts: Sequence[Part], names: Sequence[str], losses: Mapping[str, Tensor]
    ) -> tuple[dict[str, float], Direction, dict[str, dict[str, float]]]:
        """The tasks' weights, the direction, put together of those of the groups, and the weights in each group.

        The weights are with the rule's scale. A task's is the mean over the groups, by their shares of its row's
        square. SolverError where the rule of a group fails.
        """
        tensors: dict[int, Tensor] = {}
        mean, total = torch.zeros(len(names), dtype=torch.float64), torch.zeros(len(names), dtype=torch.float64)
        by_group: dict[str, dict[str, float]] = {}
        for part in parts:
            weights = torch.zeros(len(names), dtype=torch.float64)
            if here := [names[i] for i in part.alive]:
                weights[part.alive], direction = _solve(part, here, losses)
                by_group[part.name] = part.call.by_task(here, weights[part.alive])
                weights *= part.call.scale_for(here)
            else:
                direction = part.space.combine(weights)
            tensors |= zip(part.places, direction.tensors, strict=True)
            mean += part.gram.diagonal() * weights
            total += part.gram.diagonal()
        mean /= total.where(total != 0, 1)
        direction = Direction([tensors[place] for place in sorted(tensors)], None)
        return dict(zip(names, mean.tolist(), strict=True)), direction, by_group

    def get_extra_state(self) -> dict[str, Any]:
        """The state of each group's call, by its name."""
        return {name: call.state_dict() for name, call in self.calls.items()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Continue from another run's."""
        for name, own in state.items():
            self.calls[name].load_state_dict(own)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self._make(state_dict.get(f"{prefix}_extra_state", {}))  # before torch loads the rules' states
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _make(self, names: Mapping[str, Any]) -> None:
        if self.calls and list(self.calls) != list(names):
            raise ValueError(f"strategy.groups: {_few(names)} are other groups than {_few(self.calls)}.")
        if not self.calls:
            self.calls = {name: self._new() for name in names}
            self.rules = nn.ModuleList(call.rule for call in self.calls.values())


def _solve(part: Part, names: Sequence[str], losses: Mapping[str, Tensor]) -> tuple[Tensor, Direction]:
    """A rule's weights for the tasks ``names`` that have a gradient in its group, and its direction there."""
    call, alive = part.call, torch.tensor(part.alive)
    gram = part.gram[alive][:, alive]
    due = call.is_due(names)
    if call.needs_rows:
        rows = [block[send(alive, block.device)] for block in part.space.rows.blocks()]
        blocks, weights = call.combine(rows, gram, names, losses)
        return weights, part.space.unflatten(blocks)
    weights = call.solve(gram, names, losses) if due else call.last(names)
    every = torch.zeros(len(part.gram), dtype=torch.float64)
    every[alive] = call.scale_for(names) * weights
    return weights, part.space.combine(every)


def parameter_groups(backbone: nn.Module, groups: str | Sequence[str]) -> dict[str, list[nn.Parameter]]:
    """The parameters of each group, by its name, in the backbone's order; see Groups.

    ValueError for a pattern that matches nothing, and for two that match one parameter.
    """
    if groups in ("layer", "block"):
        name_of = {"layer": _layer_of, "block": _block_of}[str(groups)]
        found: dict[str, list[nn.Parameter]] = {}
        for name, parameter in backbone.named_parameters():
            found.setdefault(name_of(backbone, name) or "backbone", []).append(parameter)
        return found
    patterns = [groups] if isinstance(groups, str) else [str(group) for group in groups]  # 0 is a name in Sequential
    found = {pattern: [] for pattern in [*patterns, REST]}
    for name, parameter in backbone.named_parameters():
        mine = [pattern for pattern in patterns if is_named_by(name, pattern)]
        if len(mine) > 1:
            raise ValueError(
                f"strategy.groups: {mine[0]} and {mine[1]} both match the parameter {name}, which belongs in one group."
            )
        found[mine[0] if mine else REST].append(parameter)
    for pattern in patterns:
        if not found[pattern]:
            names = [name for name, module in backbone.named_modules() if name and _has_parameters(module)]
            close = suggestion(pattern, ["layer", "block", *(n for n in names if len(names) < 12 or n.count(".") < 2)])
            raise ValueError(f"strategy.groups: {pattern} matches no parameter of the backbone; {close}.")
    return {name: parameters for name, parameters in found.items() if parameters}


def _layer_of(backbone: nn.Module, name: str) -> str:
    return name.rpartition(".")[0]


def _block_of(backbone: nn.Module, name: str) -> str:
    """The first module on the way to a parameter that is neither a list nor a wrapper around all the others."""
    path, parent, wraps = name.split(".")[:-1], backbone, True
    for depth, part in enumerate(path, 1):
        wraps = wraps and not isinstance(parent, LISTS) and sum(map(_has_parameters, parent.children())) == 1
        parent = parent.get_submodule(part)
        if not wraps and not isinstance(parent, LISTS):
            return ".".join(path[:depth])
    return ".".join(path)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _few(names: Mapping[str, Any]) -> str:
    shown = list(names)
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
