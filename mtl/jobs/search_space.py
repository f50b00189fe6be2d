"""What a search tries: the overrides that are fixed, the arms, and the distributions of the keys that are searched."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from mtl.errors import ConfigError
from mtl.jobs.overrides import key_of, overrides

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

EXAMPLE = "'optimizer.lr=tag(log,interval(1e-4,1e-1))'"


@dataclass(frozen=True)
class Space:
    """The command line of a search.

    ``arms``: one list of overrides for each combination of the values in comma lists; each is searched alone, with as
    many trials as any other. ``searched``: key element (with its +) → the sweep as it was typed.
    """

    fixed: list[str]
    arms: list[list[str]]
    searched: dict[str, Override]

    @classmethod
    def of(cls, hydra: DictConfig) -> Space:
        """That of the sweeper's ``params`` and of the command line, which replaces what they have as well."""
        line = [*(f"{key}={value}" for key, value in hydra.sweeper.params.items()), *overrides(hydra)]
        return cls.parse([*{text.partition("=")[0]: text for text in line}.values()])

    @classmethod
    def parse(cls, line: Sequence[str]) -> Space:
        """ConfigError for a line without a key to search, and for one that sweeps over seeds."""
        parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides([*line])
        fixed = [text.input_line for text in parsed if not text.is_sweep_override()]
        sweeps = [text for text in parsed if text.is_sweep_override()]
        searched = {text.get_key_element(): text for text in sweeps if _is_searched(text)}
        for text in sweeps:
            if key_of(text.input_line) == "seed":
                raise ConfigError(
                    f"{text.input_line}: a search trains each setting once; search with one seed, and train the best "
                    "setting again with others, as its last lines say."
                )
        if not searched:
            raise ConfigError(
                f"A search needs a key to search, as {EXAMPLE} or 'optimizer.lr=choice(0.01,0.1)'; a list such as "
                "strategy=naive,mgda makes an arm of each value. Without hydra/sweeper=… it is a sweep."
            )
        listed = [text for text in sweeps if not _is_searched(text)]
        values = [[f"{text.get_key_element()}={v}" for v in text.sweep_string_iterator()] for text in listed]
        return cls(fixed, [list(arm) for arm in itertools.product(*values)], searched)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of each searched key; ConfigError for an empty interval, or a log that has no start."""
        return {element: _distribution(text) for element, text in self.searched.items()}

    def overrides(self, arm: Sequence[str], values: Mapping[str, Any]) -> list[str]:
        """The overrides of one job."""
        return [*self.fixed, *arm, *(f"{element}={value}" for element, value in values.items())]

    def first(self) -> dict[str, Any]:
        """Of every searched key the first value, with which a mistake in the other keys is found."""
        return {element: _first(text) for element, text in self.searched.items()}

    def check_numbers(self, config: DictConfig) -> None:
        """ConfigError for an interval of what is no number in ``config``, the configuration without the search."""
        for element, text in self.searched.items():
            found = OmegaConf.select(config, element.lstrip("+"))
            if isinstance(text.value(), IntervalSweep) and not _may_be_number(found):
                what = "a group of options" if isinstance(found, DictConfig) else f"{found}, which is no number"
                raise ConfigError(
                    f"{text.input_line}: an interval is for a number, and {element.lstrip('+')} is {what}; name the "
                    f"values, as in '{element}=choice(…)'."
                )


def _is_searched(text: Override) -> bool:
    """Whether a sweep is searched; a comma list and a glob make arms, as they make jobs in a sweep."""
    value = text.value()
    return isinstance(value, IntervalSweep | RangeSweep) or (isinstance(value, ChoiceSweep) and not value.simple_form)


def _first(text: Override) -> Any:
    value = text.value()
    return value.start if isinstance(value, IntervalSweep) else next(text.sweep_string_iterator())


def _may_be_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _distribution(text: Override) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = text.value()
    if isinstance(value, ChoiceSweep):
        return CategoricalDistribution([*text.sweep_string_iterator()])
    if value.tags - {"log"}:
        raise ConfigError(f"{text.input_line}: the only tag of a search is log, as in {EXAMPLE}.")
    log = "log" in value.tags
    try:
        if isinstance(value, IntervalSweep):
            kind = IntDistribution if isinstance(value.start, int) and isinstance(value.end, int) else FloatDistribution
            return kind(value.start, value.end, log=log)
        numbers = sorted(float(number) for number in text.sweep_string_iterator())
        if all(number.is_integer() for number in numbers):
            return IntDistribution(int(numbers[0]), int(numbers[-1]), step=int(abs(value.step)), log=log)
        return FloatDistribution(numbers[0], numbers[-1], step=abs(value.step), log=log)
    except (ValueError, IndexError) as error:
        reason = " ".join(str(error).split()).rstrip(".") if isinstance(error, ValueError) else "it is empty"
        raise ConfigError(f"{text.input_line} is nothing to search: {reason}.") from error
