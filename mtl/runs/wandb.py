"""Weights & Biases: every call is guarded, and a failure there never stops a run."""

from __future__ import annotations

import base64
import logging
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl.errors import first_line
from mtl.runs.files import finite_or_null

if TYPE_CHECKING:
    import numpy as np
    import plotly.graph_objects as go

log = logging.getLogger(__name__)


class WandbRun:
    """One run in W&B. Every call is guarded: after the first failure this run goes on without W&B."""

    def __init__(self, folder: Path, settings: Any, config: dict[str, Any], run_id: str | None) -> None:
        self.id = run_id
        self._run: Any = None
        self._environment = _wandb_environment()
        mode = settings.mode or os.environ.get("WANDB_MODE") or None
        if mode != "disabled":
            self._guard("start", lambda: self._start(folder, settings, config, mode))

    def _start(self, folder: Path, settings: Any, config: dict[str, Any], mode: str | None) -> None:
        # W&B would put staged tables and the logs of its service into the home folder; they belong to the run.
        os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb" / "cache"))
        os.environ.pop("WANDB_MODE", None)  # ``mode`` has its value already, and W&B rejects an empty one
        import wandb

        # Silent mode also never prompts for a key.
        wandb.setup(settings=wandb.Settings(silent=True, mode=mode or "online"))
        # Otherwise W&B would return a run that other code left open, and login() would not see the key.
        wandb.finish()
        self._run = _init_or_offline(self._options(folder, settings, config), mode)
        self.id = self._run.id
        self._run.define_metric("trainer/step")
        self._run.define_metric("*", step_metric="trainer/step")
        log.info("W&B run %s: %s", self._run.id, self._run.url or f"offline, {self._run.sync_dir}")

    def _options(self, folder: Path, settings: Any, config: dict[str, Any]) -> dict[str, Any]:
        import wandb

        # A resumed run keeps its id. W&B would renumber its own steps; trainer/step tells where a row belongs.
        resumed = {} if self.id is None else {"id": self.id, "resume": "allow"}
        return resumed | {
            "project": settings.project,
            "entity": settings.entity,
            "dir": str(folder),
            "group": settings.group,
            "job_type": "train",
            "name": settings.run_name,
            "tags": [tag[:64] for tag in settings.tags],  # W&B's limit
            "config": config,
            "settings": wandb.Settings(
                console="off",
                init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", 30)),
                # W&B's own default waits for ever if the server does not answer.
                finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", 60)),
                finish_timeout_raises=True,
            ),
        }

    def log(self, row: dict[str, Any]) -> None:
        """Send one row."""
        self._guard("log", lambda: self._run.log(row))

    def image(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Send one image ``[H, W, 3]``."""

        def send() -> None:
            import wandb

            self._run.log({name: wandb.Image(pixels), "trainer/step": step})

        self._guard("log an image", send)

    def figures(self, step: int, make: Callable[[], Mapping[str, go.Figure]]) -> None:
        """Send the figures that ``make`` returns, as interactive panels called ``figures/<name>``."""

        def send() -> None:
            panels = {f"figures/{name}": panel(figure) for name, figure in make().items()}
            self._run.log({**panels, "trainer/step": step})

        self._guard("log figures", send)

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Write the run's summary."""
        self._guard("write the summary", lambda: self._run.summary.update(dict(summary)))

    def finish(self, exit_code: int) -> None:
        """Finish the run, and restore the environment."""
        self._guard("finish", lambda: self._run.finish(exit_code=exit_code))
        self._run = None
        for name in _wandb_environment():
            del os.environ[name]
        os.environ.update(self._environment)

    def _guard(self, action: str, call: Callable[[], Any]) -> None:
        if self._run is None and action != "start":
            return
        # W&B retries after a random delay, which it draws from Python's global generator. So does the training.
        state = random.getstate()
        try:
            call()
        except Exception as error:
            log.warning(
                "W&B failed to %s (%s). metrics.jsonl goes on without it%s.", action, _one_line(error),
                f"; `wandb sync {self._run.sync_dir}` sends the saved rows" if self._run is not None else "",
            )  # fmt: skip
            self._run = None
            _tear_down()
        finally:
            random.setstate(state)


def panel(figure: go.Figure) -> Any:
    """A figure as W&B's interactive panel. Its arrays become lists: W&B's own Plotly may be older than typed ones."""
    import wandb
    from plotly.graph_objects import Figure

    return wandb.Plotly(Figure(_with_lists(figure.to_plotly_json())))


def _with_lists(part: Any) -> Any:
    if isinstance(part, list | tuple):
        return [_with_lists(item) for item in part]
    if not isinstance(part, Mapping):
        return part
    if "bdata" not in part:
        return {key: _with_lists(item) for key, item in part.items()}
    import numpy as np

    values = np.frombuffer(base64.b64decode(part["bdata"]), part["dtype"])
    shape = [int(side) for side in str(part.get("shape", values.size)).split(",")]
    return finite_or_null(values.reshape(shape).tolist())


def _init_or_offline(options: dict[str, Any], mode: str | None) -> Any:
    """Start a run; it is recorded offline if there is no key, or if the server starts none."""
    import wandb

    options = options | {"mode": mode or "online"}
    try:
        if mode is None and not wandb.login(prompt=False, verify=False):
            options["mode"] = "offline"
        return wandb.init(**options)
    except Exception as error:
        if options["mode"] == "offline":
            raise
        reason = first_line(error)
        log.warning("W&B starts no online run (%s): it is recorded offline, `wandb sync` sends it.", reason)
        return wandb.init(**options | {"mode": "offline"})


def _tear_down() -> None:
    """End W&B's service, so that the next job of a sweep starts a new one."""
    try:
        import wandb

        wandb.run = None  # teardown() keeps the dead run, and login() sees no key while there is a run
        wandb.teardown()
    except (Exception, SystemExit) as error:  # teardown() calls sys.exit if its service was killed
        log.debug("W&B could not be torn down: %s", _one_line(error))


def _wandb_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
