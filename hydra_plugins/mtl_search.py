"""The search as Hydra finds it: Hydra takes a sweeper from a package ``hydra_plugins`` only.

Every Hydra application where mtl is installed imports this file, so that it imports nothing before a search.
"""

from __future__ import annotations

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class Search(Sweeper):
    """``hydra/sweeper=mtl_tpe`` and its like; the options are those of :class:`mtl.jobs.search.Options`."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what the search needs, and make the launcher of its jobs."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the search that the configuration describes; it has the ``arguments`` too."""
        from mtl.jobs.search import Options, search

        return search(self.config, self.launcher, Options(**self.options))
