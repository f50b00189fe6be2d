"""The model: a shared backbone under one head a task."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from mtl.errors import suggestion

log = logging.getLogger(__name__)


class MultiTaskModel(nn.Module):
    """``heads[task](backbone(inputs))`` for every task.

    The backbone returns the shared features (a tensor, or a nesting of tuples, lists and dicts of tensors);
    each head is any module that maps them to a prediction. ``share`` names submodules that the heads have in common, as
    an unembedding: the first head's takes the place of the others'. ``freeze`` names submodules, as ``backbone.conv1``,
    or parameters that are not trained, see the method. ValueError where there is no such submodule, or a shared one of
    another kind or size.
    """

    def __init__(
        self,
        backbone: nn.Module,
        heads: Mapping[str, nn.Module],
        share: Sequence[str] = (),
        freeze: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        for name in share:
            share_submodule(heads, name)
        self.frozen: tuple[str, ...] = ()  # modules
        self._held: tuple[str, ...] = ()  # parameters that would be trained otherwise
        self.freeze(freeze)

    def freeze(self, names: Sequence[str]) -> None:
        """Do not train the named submodules and parameters.

        The parameters need no gradient, and the submodules stay in evaluation mode, so that their batch statistics stay
        as they are. ValueError for a name of neither.
        """
        before = {name for name, p in self.named_parameters() if p.requires_grad}
        parameters = dict(self.named_parameters(remove_duplicate=False))
        for name in names:
            if name in parameters:
                parameters[name].requires_grad_(False)
                continue
            try:
                find_submodule(self, name).requires_grad_(False).eval()
            except ValueError as error:
                raise ValueError(f"freeze={name}: {error}") from error
            self.frozen += (name,)
        self._held += tuple(name for name, p in self.named_parameters() if name in before and not p.requires_grad)

    def unfreeze(self) -> None:
        """Train from now on what ``freeze`` has named."""
        for parameter in self.frozen_parameters():
            parameter.requires_grad_()
        self.frozen = self._held = ()
        self.train(self.training)

    def frozen_parameters(self) -> list[nn.Parameter]:
        """The parameters that ``unfreeze`` would train."""
        own = dict(self.named_parameters())
        return [own[name] for name in self._held]

    def train(self, mode: bool = True) -> MultiTaskModel:
        """Set the mode of all modules but the frozen ones, which stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def forward(self, inputs: Any) -> dict[str, Any]:
        """The prediction of every task, by its name."""
        features = self.backbone(inputs)
        return {task: head(features) for task, head in self.heads.items()}

    def __deepcopy__(self, memo: dict[int, Any]) -> MultiTaskModel:
        """A copy, as of an average of the weights, also of heads that keep a tensor of a graph."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        memo.update(graph_tensors(self))
        copied.__setstate__(copy.deepcopy(self.__reduce_ex__(4)[2], memo))
        return copied

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The backbone's parameters: the tasks share them."""
        return self.backbone.parameters()

    def shared_parameters_of(self, part: Sequence[str]) -> Iterator[nn.Parameter]:
        """The backbone's parameters in ``part``: submodules, parameters, or patterns of their names (``blocks.1*``)."""
        for name, parameter in self.backbone.named_parameters():
            if any(is_named_by(name, pattern) for pattern in part):
                yield parameter

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The heads' parameters; one that several heads share comes once."""
        return self.heads.parameters()

    def common_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that several heads hold, as of a submodule that they share, and the backbone does not."""
        held = Counter(p for head in self.heads.values() for p in head.parameters())
        backbone = set(self.backbone.parameters())
        return (p for p, count in held.items() if count > 1 and p not in backbone)

    def is_compiled(self) -> bool:
        """Whether the backbone or a head is compiled."""
        return any(getattr(m, "_compiled_call_impl", None) is not None for m in (self.backbone, *self.heads.values()))


def is_named_by(name: str, pattern: str) -> bool:
    """Whether a parameter is, or is in, what a name or a pattern says."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def graph_tensors(module: nn.Module) -> dict[int, Any]:
    """A memo for copy.deepcopy, which torch refuses for tensors of a graph: copies without it, by the tensors' ids.

    Such tensors are what a module keeps of its last forward pass, and the ``weight`` of torch's older weight_norm.
    """
    kept = [leaf for inner in module.modules() for leaf in pytree.tree_leaves(vars(inner)) if isinstance(leaf, Tensor)]
    return {id(tensor): tensor.detach().clone() for tensor in kept if tensor.grad_fn is not None}


def find_submodule(root: nn.Module, name: str) -> nn.Module:
    """The submodule of a dotted name; ValueError with the closest name where there is none."""
    module, path = root, ""
    for part in name.split("."):
        children = dict(module.named_children())
        if part not in children:
            where = f"{path} (a {type(module).__name__})" if path else "the model"
            ending = suggestion(part, children) if children else "it has none"
            raise ValueError(f"{where} has no submodule {part}; {ending}.")
        module, path = children[part], f"{path}.{part}".lstrip(".")
    return module


def warn_of_moving_statistics(model: MultiTaskModel) -> None:
    """Warn of modules that have no parameter to train, but batch statistics that every training step changes."""
    untrained: list[str] = []
    for name, module in model.named_modules():
        parameters = list(module.parameters())
        inside = any(f"{name}.".startswith(f"{outer}.") for outer in untrained)
        if (
            parameters
            and not inside
            and not any(p.requires_grad for p in parameters)
            and _has_moving_statistics(module)
        ):
            untrained.append(name)
    if untrained:
        log.warning(
            "%s has no parameter to train, but its batch statistics follow the training data, as torch has it; "
            "freeze=[%s] keeps them.", " and ".join(untrained[:3]), ",".join(untrained),
        )  # fmt: skip


def warn_of_random_weights(model: MultiTaskModel) -> None:
    """Warn of a backbone that is not pretrained, and more than a tenth of whose parameters are not trained either."""
    parameters = list(model.backbone.parameters())
    frozen = sum(p.numel() for p in parameters if not p.requires_grad) / max(1, sum(p.numel() for p in parameters))
    if frozen > 0.1:
        log.warning(
            "%d %% of the backbone's parameters are frozen, and no key of backbone names trained weights: they stay at "
            "random values; load trained ones by backbone.pretrained=true or =FILE, of texts by backbone.path=FOLDER",
            round(100 * frozen),
        )  # fmt: skip


def _has_moving_statistics(module: nn.Module) -> bool:
    return any(isinstance(m, _NormBase) and m.training and m.track_running_stats for m in module.modules())


def share_submodule(heads: Mapping[str, nn.Module], name: str) -> None:
    """Put the first head's submodule ``name`` in the place of the others'; ValueError where that is impossible."""
    own = {}
    for task, head in heads.items():
        submodules = dict(head.named_modules(remove_duplicate=False))
        del submodules[""]
        if name not in submodules:
            raise ValueError(f"share={name}: the head of {task} has only {', '.join(submodules) or 'no submodules'}.")
        own[task] = submodules[name]
    first, *others = own
    for task in others:
        if str(own[task]) != str(own[first]):
            a, b = (
                f"{type(m).__name__} of {sum(p.numel() for p in m.parameters())} numbers"
                for m in (own[first], own[task])
            )
            raise ValueError(f"share={name}: it is a {a} in {first}, but a {b} in {task}.")
        heads[task].set_submodule(name, own[first])
