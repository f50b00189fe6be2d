"""Which settings of strategies with a rule go together."""

from __future__ import annotations

from torch import nn


def check_settings(
    rule: nn.Module, space: str, part: object, groups: object, every: int, head_scale: str, on_solver_failure: str
) -> None:
    """ValueError for a setting of Balanced that is none, and for two that do not go together."""
    _check_choice("space", space, ("features", "features_sum", "parameters"))
    _check_choice("head_scale", head_scale, ("unit", "weights"))
    _check_choice("on_solver_failure", on_solver_failure, ("raise", "skip"))
    if getattr(rule, "needs_rows", False) and (space == "features_sum" or every != 1):
        raise ValueError(
            f"{type(rule).__name__} works on the rows themselves: it needs space=features or parameters, and "
            f"every=1, not space={space} and every={every}."
        )
    if part is not None and (space != "parameters" or getattr(rule, "needs_rows", False)):
        raise ValueError(
            f"part={part} needs space=parameters and a rule on the Gram matrix, not space={space} and "
            f"{type(rule).__name__}."
        )
    if groups is not None:
        _check_groups(groups, space, part, head_scale)


def _check_groups(groups: object, space: str, part: object, head_scale: str) -> None:
    if space != "parameters":
        raise ValueError(
            f"groups={groups} needs space=parameters, not space={space}, which has no parameters to group."
        )
    if part is not None:
        raise ValueError(f"groups={groups} cannot go with part={part}: leave one out.")
    if head_scale != "unit":
        raise ValueError(
            f"groups={groups} needs head_scale=unit, not head_scale={head_scale}: a head is in no group, and has no "
            "weights of one."
        )


def _check_choice(name: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name}={value} must be one of {', '.join(accepted)}.")
