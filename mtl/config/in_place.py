"""Operations in place on what others read as well, found by trying, and named."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mtl.gradients.cut import Cut

INSTEAD = "write x = x + … for x += …, x = x.mul(…) for x.mul_(…), and relu(x) for relu(x, inplace=True)"
WORDS = "in-place operation", "modified inplace"  # of torch's errors


def in_place_error(name: str, head: nn.Module, features: Any) -> str | None:
    """A sentence that names the module of ``head`` which changes the features in place; None where none fails by that.

    ``name``: of the head, as heads.left (MLP). torch refuses it, because a head's gradient stops at the features.
    """
    path, module = innermost_module(head, Cut(_clones(features)).features)
    fails = _fails_in_place(head, Cut(_clones(features)).features)
    # Where a copy fails as well, it is something else that is changed in place, as one of the head's parameters.
    if not fails or _fails_in_place(head, _clones(Cut(features).features)):
        return None
    if getattr(module, "inplace", False) is True:
        where = name.split(" ")[0] + (f".{path}" if path else "")
        return f"{where}: {module} changes the backbone's features, which the other heads read too; use inplace=False."
    inside = f", in {path} ({type(module).__name__})," if path else ""
    return f"{name} changes the backbone's features in place{inside} and the other heads read them too: {INSTEAD}."


def innermost_module(module: nn.Module, values: Any) -> tuple[str, nn.Module]:
    """The path and the module inside of ``module`` that fails on ``values``; it itself where none inside does."""
    active: list[tuple[str, nn.Module]] = []
    hooks = []
    for path, inner in module.named_modules():
        hooks.append(inner.register_forward_pre_hook(lambda m, _, path=path: active.append((path, m))))
        hooks.append(inner.register_forward_hook(lambda *_: active.pop() and None))
    try:
        module(values)
    except Exception:
        return active[-1] if active else ("", module)  # a lazy module fails before its own hooks
    finally:
        for hook in hooks:
            hook.remove()
    return "", module


def is_same(values: Any, before: Any) -> bool:
    """Whether a nesting of tensors, and all numbers in it, are still what they were."""
    (now, structure), (then, structure_before) = pytree.tree_flatten(values), pytree.tree_flatten(before)
    pairs = zip(now, then, strict=True) if structure == structure_before else ()
    same = all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs if isinstance(a, Tensor))
    return structure == structure_before and same


def _clones(values: Any) -> Any:
    return pytree.tree_map_only(Tensor, torch.clone, values)


def _fails_in_place(head: nn.Module, features: Any) -> bool:
    try:
        head(features)
    except RuntimeError as error:
        return any(words in str(error) for words in WORDS)
    except Exception:
        return False
    return False
