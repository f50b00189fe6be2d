"""Where a run's numbers go: metrics.jsonl always, Weights & Biases when it can; its status and summary."""

from __future__ import annotations

import json
import logging
import math
import os
import random
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mtl import report
from mtl.launch import rank
from mtl.signals import EXIT_CODE, Preempted

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a small JSON file whole: under another name first, then renamed."""
    write_whole(path, json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Write a small file whole or not at all: under another name first, then renamed."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    """``value`` with null for what JSON has no number for: NaN and the infinities."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_status(folder: Path, status: str, error: str | None = None) -> None:
    """Write status.json: how a run stands, since when, and its error's first line.

    It is ``running``, ``finished``, ``failed``, ``preempted`` (asked to stop, and it saved its state) or ``oom`` (out
    of memory). A process that was killed leaves it at ``running``.
    """
    content = {"status": status, "time": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    if error is not None:
        content["error"] = error.strip().split("\n")[0]
    write_json(folder / "status.json", content)


def cut_back(path: Path, step: int) -> None:
    """Leave only the rows of a metrics.jsonl that a run had written when it was at ``step``: it writes the rest again.

    A last line that was cut off goes as well, and so does the final test. ValueError if another line is broken.
    """
    if not path.is_file():
        return
    lines = path.read_text().splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append((line, json.loads(line)))
        except json.JSONDecodeError as error:
            if line.endswith("\n"):
                raise ValueError(f"{path} is broken: line {number} is no JSON; mend or remove it.") from error
    write_whole(path, "".join(line for line, row in rows if row["step"] <= step and row["split"] != "test"))


class _Record:
    """An append-only file of lines. Where the disk is full, lines wait in memory until they can be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._end = self._file.seek(0, os.SEEK_END)  # after the last line that was written whole
        self._waiting = b""

    def append(self, line: str) -> None:
        first = not self._waiting
        self._waiting += line.encode()
        try:
            self._write()
        except OSError as error:
            if first:
                log.warning("%s cannot be written (%s); its lines wait in memory.", self._path, error.strerror)

    def flush(self) -> None:
        """Everything to the disk itself; OSError if it cannot be written."""
        self._write()
        os.fsync(self._file.fileno())

    def _write(self) -> None:
        rest = memoryview(self._waiting)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self._end)  # no half lines for those who read along
            raise
        self._end += len(self._waiting)
        self._waiting = b""

    def close(self) -> None:
        try:
            if self._waiting:
                self.flush()
        finally:
            self._file.close()


class Tracker:
    """A run's record, as a context manager: ``metrics.jsonl`` in ``folder``, mirrored in W&B, names and all.

    A row holds ``step``, ``epoch``, ``split`` and the metrics; in W&B the split stands before each name and
    ``trainer/step`` is the x axis. A value that JSON has no number for (NaN, infinity) is written as null.
    W&B never stops a run: if it fails, one warning is logged and the record goes on without it. On a full disk the
    rows wait in memory; OSError at the end if they could not be written until then.

    ``wandb_id``: the W&B run to go on with; afterwards the one that there is, None without W&B.
    """

    def __init__(self, folder: Path, settings: Any, config: dict[str, Any], wandb_id: str | None = None) -> None:
        self.folder, self.config, self.wandb_id = folder, config, wandb_id
        self._settings = settings

    def __enter__(self) -> Tracker:
        self._record = _Record(self.folder / "metrics.jsonl")
        self._wandb = _WandB(self.folder, self._settings, self.config, self.wandb_id)
        self.wandb_id = self._wandb.id
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wandb.finish(EXIT_CODE if isinstance(error, Preempted) else int(kind is not None))
        self._record.close()

    def flush(self) -> None:
        """Bring every row to the disk; OSError if that cannot be done."""
        self._record.flush()

    def log(self, split: str, step: int, epoch: float, metrics: Mapping[str, float]) -> None:
        """Add one row."""
        row = {"step": step, "epoch": round(epoch, 4), "split": split, **metrics}
        self._record.append(json.dumps(_finite(row), allow_nan=False) + "\n")
        named = {f"{split}/{name}": value for name, value in metrics.items()}
        self._wandb.log({**named, "trainer/step": step, "trainer/epoch": epoch})

    def image(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Show an image ``[H, W, 3]`` in W&B."""
        self._wandb.image(name, step, pixels)

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json, and W&B's summary."""
        write_json(self.folder / "summary.json", summary)
        self._wandb.summarise(summary)

    def show(self) -> None:
        """Draw run.png of a run that is finished, and print what it came to."""
        report.draw_run(self.folder)
        print(report.closing_words(self.folder))


class Silent:
    """The record of a rank that is not the first: nothing. Rank 0 writes the run's."""

    wandb_id = None

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder, self.config = folder, config

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def log(self, *_: Any) -> None:
        """Nothing."""

    image = summarise = show = log


def tracker_of(folder: Path, settings: Any, config: dict[str, Any], wandb_id: str | None) -> Tracker | Silent:
    """The record that this process keeps; see Tracker."""
    return Silent(folder, config) if rank() else Tracker(folder, settings, config, wandb_id)


class _WandB:
    """The W&B side. Every call is guarded; after the first failure the run goes on without W&B."""

    def __init__(self, folder: Path, settings: Any, config: dict[str, Any], run_id: str | None) -> None:
        self.id = run_id
        self._run: Any = None
        self._environment = _wandb_environment()
        mode = settings.mode or os.environ.get("WANDB_MODE") or None
        if mode != "disabled":
            self._guard("start", lambda: self._start(folder, settings, config, mode))

    def _start(self, folder: Path, settings: Any, config: dict[str, Any], mode: str | None) -> None:
        # What W&B would leave in the home folder (staged tables, its helper's logs) belongs to the run's.
        os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb" / "cache"))
        os.environ.pop("WANDB_MODE", None)  # it has been heard, and empty it is an error
        import wandb

        # Silent it also never prompts for a key.
        wandb.setup(settings=wandb.Settings(silent=True, mode=mode or "online"))
        # A run that something else left open would be taken for this one; login() sees no key beside it.
        wandb.finish()
        options: dict[str, Any] = {
            "mode": mode or "online",
            "project": settings.project,
            "entity": settings.entity,
            "dir": str(folder),
            "group": settings.group,
            "job_type": "train",
            "name": settings.run_name,
            "tags": [tag[:64] for tag in settings.tags],  # W&B's limit
            "config": config,
            # The same run again; W&B's own count of steps would be renumbered, trainer/step says where a row belongs.
            **({} if self.id is None else {"id": self.id, "resume": "allow"}),
            "settings": wandb.Settings(
                console="off",
                init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", 30)),
                # W&B's own default waits for ever when the server does not answer.
                finish_timeout=float(os.environ.get("WANDB_FINISH_TIMEOUT", 60)),
                finish_timeout_raises=True,
            ),
        }
        try:
            if mode is None and not wandb.login(prompt=False, verify=False):
                options["mode"] = "offline"
            self._run = wandb.init(**options)
        except Exception as error:
            if options["mode"] == "offline":
                raise
            reason = str(error).split("\n")[0]
            log.warning("W&B gives no run (%s): it is recorded offline, `wandb sync` sends it.", reason)
            self._run = wandb.init(**options | {"mode": "offline"})
        self.id = self._run.id
        self._run.define_metric("trainer/step")
        self._run.define_metric("*", step_metric="trainer/step")
        log.info("W&B run %s: %s", self._run.id, self._run.url or f"offline, {self._run.sync_dir}")

    def log(self, row: dict[str, Any]) -> None:
        self._guard("log", lambda: self._run.log(row))

    def image(self, name: str, step: int, pixels: np.ndarray) -> None:
        def send() -> None:
            import wandb

            self._run.log({name: wandb.Image(pixels), "trainer/step": step})

        self._guard("log an image", send)

    def summarise(self, summary: Mapping[str, Any]) -> None:
        self._guard("write the summary", lambda: self._run.summary.update(dict(summary)))

    def finish(self, exit_code: int) -> None:
        self._guard("finish", lambda: self._run.finish(exit_code=exit_code))
        self._run = None
        for name in _wandb_environment():
            del os.environ[name]
        os.environ.update(self._environment)

    def _guard(self, what: str, call: Callable[[], Any]) -> None:
        if self._run is None and what != "start":
            return
        # Where W&B tries again it waits for a random time, drawn from the generator that the run draws from as well.
        state = random.getstate()
        try:
            call()
        except Exception as error:
            log.warning(
                "W&B failed to %s (%s). metrics.jsonl goes on without it%s.", what, _one_line(error),
                f"; `wandb sync {self._run.sync_dir}` sends what was saved" if self._run is not None else "",
            )  # fmt: skip
            self._run = None
            _reset()
        finally:
            random.setstate(state)


def _reset() -> None:
    """Give the next job of a sweep a fresh W&B, whatever became of this one's."""
    try:
        import wandb

        wandb.run = None  # it would stay the dead one, and login() sees no key beside a run
        wandb.teardown()
    except (Exception, SystemExit) as error:  # teardown() calls sys.exit where its helper was killed
        log.debug("W&B could not be torn down: %s", _one_line(error))


def _wandb_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
