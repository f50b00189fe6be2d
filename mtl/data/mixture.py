"""How often the samples of each task are drawn, where every task has a set of its own and the sets differ in size."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from mtl.errors import require

log = logging.getLogger(__name__)

SAMPLING = ("equal", "proportional", "temperature")


class Mixture:
    """Which of its own samples each task has at each place of an epoch, drawn without replacement.

    ``sizes`` are the tasks' numbers of samples n, and N is the largest. An epoch has N places, and a batch is
    ``batch_size`` of them. At how many of the N places a task has a sample:

    - ``equal``: at all, so that a batch has ``batch_size`` samples of every task, and smaller sets start over;
    - ``proportional``: at n, so that an epoch is one pass over every set;
    - ``temperature``: at ``N (n / N)^(1 / temperature)``, between the two: 1 is ``proportional``, and with a high
      temperature it nears ``equal``.

    A task's places are spread evenly over the epoch, which the sampler then shuffles by seed and epoch. Each sample of
    a task is used equally often: a set that is not through at an epoch's end goes on in the next one. What is drawn
    depends on the seed, the epoch and the place alone, as a resumed run needs it.

    The loss of a task is the mean over its own samples in the batch. So sampling does not weigh the tasks: a rarer
    task's loss and gradient have the same scale and more noise. Only in a batch without any sample of it is it absent,
    and gets no gradient. To weigh tasks by their sizes use ``weighting=static``.

    Raises ValueError for another ``sampling``, and for a temperature below 1 or without ``sampling=temperature``.
    Source: temperature-based sampling, Arivazhagan et al. 2019, section 4.1; there p ∝ n^(1 / T).
    """

    def __init__(
        self, sizes: Mapping[str, int], sampling: str = "equal", temperature: float | None = None, seed: int = 0
    ) -> None:
        power = _exponent(sampling, temperature)
        self._places = most = max(sizes.values())
        self._counts = {task: max(1, round(most * (n / most) ** power)) for task, n in sizes.items()}
        self._orders = {
            task: np.random.default_rng((seed, number)).permutation(n) for number, (task, n) in enumerate(sizes.items())
        }

    def __len__(self) -> int:
        return self._places

    def log_batch(self, batch_size: int) -> None:
        """Log how many samples of each task a batch has on average, with a warning for less than one."""
        means = {task: batch_size * count / self._places for task, count in self._counts.items()}
        log.info("a batch has on average %s", ", ".join(f"{mean:.4g} {task}" for task, mean in means.items()))
        for task, mean in means.items():
            if mean < 1:
                log.warning(
                    "a batch has on average %.2g samples of %s: in most batches the task is absent and gets no "
                    "gradient; raise data.batch_size or data.temperature", mean, task,
                )  # fmt: skip

    def chance_of_one(self, task: str, batch_size: int) -> float:
        """How probable it is that a batch, drawn of the places of an epoch, has just one sample of a task."""
        from scipy.stats import hypergeom  # slow to import

        return float(hypergeom.pmf(1, self._places, self._counts[task], min(batch_size, self._places)))

    def places(self, task: str, indices: Sequence[int]) -> list[int]:
        """Those of the places ``indices`` at which a task has a sample."""
        return [index for index in indices if index * self._counts[task] % self._places < self._counts[task]]

    def sample(self, task: str, index: int, epoch: int) -> int:
        """Which of its samples a task has at a place, in an epoch."""
        count, order = self._counts[task], self._orders[task]
        return int(order[(epoch * count + index * count // self._places) % len(order)])


def _exponent(sampling: str, temperature: float | None) -> float:
    require("sampling", sampling, f"one of {', '.join(SAMPLING)}", sampling in SAMPLING)
    if sampling != "temperature":
        require("temperature", temperature, f"null with sampling={sampling}", temperature is None)
        return float(sampling == "proportional")
    if not isinstance(temperature, int | float) or not temperature >= 1:  # NaN neither
        raise ValueError(f"temperature={temperature} must be a number of 1 or more.")
    return 1 / temperature
