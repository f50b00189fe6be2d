"""What ``freeze`` names: submodules and parameters of the model, and the first stages of its backbone."""

from __future__ import annotations

from collections.abc import Iterator

from mtl.architectures.stages import stages
from mtl.config.architecture import Architecture
from mtl.errors import ConfigError
from mtl.model import MultiTaskModel

STAGES = "backbone:"  # backbone:2, the first two


def freeze(model: MultiTaskModel, names: list[str], architecture: Architecture) -> None:
    """Freeze what ``names`` says. ConfigError for a name of nothing, and where stages cannot be counted."""
    try:
        for name in names:
            model.freeze(_first_stages(model, name, architecture) if name.startswith(STAGES) else [name])
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _first_stages(model: MultiTaskModel, name: str, architecture: Architecture) -> list[str]:
    if not architecture.has_one_backbone:
        raise ConfigError(f"freeze={name}: only architecture=hard has stages to count; name submodules, as backbone.…")
    try:
        units = stages(architecture.plain).units  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(f"freeze={name}: {error}") from error
    count = name.removeprefix(STAGES)
    if count not in map(str, range(1, len(units) + 1)):
        raise ConfigError(f"freeze={name} must be backbone:1 to backbone:{len(units)}, the first stages of so many.")
    return list(_names(model, units[: int(count)]))


def _names(model: MultiTaskModel, units: list) -> Iterator[str]:
    """The names of the modules and the parameters inside of ``units``: a unit itself need not be a submodule."""
    modules = {module for unit in units for module in unit.modules()}
    parameters = {parameter for unit in units for parameter in unit.parameters()}
    yield from (name for name, module in model.named_modules() if module in modules)
    yield from (name for name, parameter in model.named_parameters() if parameter in parameters)
