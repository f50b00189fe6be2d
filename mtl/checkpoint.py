"""Checkpoints: written whole or not at all, verified when they are read, plain tensors and numbers inside."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from mtl import distributed

log = logging.getLogger(__name__)

FORMAT = 3
FOLDER = "checkpoints"  # in a run's folder
FAILED_SAVES = 3  # so many in a row end the run


class Saver:
    """Writes a run's checkpoints, of its TrainState: ``last.pt``, ``best.pt`` and the ``keep`` latest numbered ones.

    A write that fails (a full disk, a folder that is gone) leaves the last good checkpoint as it is and is a warning;
    after FAILED_SAVES in a row, or where there will not be another one, it is an OSError.
    """

    def __init__(self, state: Any, tracker: Any, keep: int) -> None:
        self._state, self._tracker, self._keep = state, tracker, keep
        self._folder = tracker.folder / FOLDER
        self._failures = 0

    def save_best(self, value: float, metrics: dict[str, float], must: bool) -> None:
        """Save a model that is better than all before; if that fails the one before stays the best."""
        state = self._state
        before = state.best, state.best_step, state.best_metrics
        state.best, state.best_step, state.best_metrics = value, state.step, metrics
        if not self.save("best.pt", must=must):
            state.best, state.best_step, state.best_metrics = before

    def save(self, *also: str, must: bool = False) -> bool:
        """Save the state as ``last.pt``, and under the names ``also``; whether it could be written.

        All ranks call it, for each has a part of the state; rank 0 writes. RuntimeError where their strategies differ.
        What will not come again, the best model or a last state (``must``), is tried again for three seconds.
        """
        distributed.same_everywhere("The strategy's state", _digest(self._state.strategy.state_dict()))
        content = distributed.whole(self._state.state_dict())
        return distributed.from_first(self._write(content, also, must) if distributed.rank() == 0 else None)

    def _write(self, state: dict[str, Any], also: Sequence[str], must: bool) -> bool:
        numbered = [f"step-{self._state.step:08d}.pt"] if self._keep else []
        made_by = {"config": self._tracker.config, "wandb_id": self._tracker.wandb_id}
        content = made_by | state
        error = self._try(content, [*also, *numbered])
        for seconds in (1, 2) if also or must else ():
            if error is not None:
                time.sleep(seconds)
                error = self._try(content, [*also, *numbered])
        if error is not None:
            self._failed(error, must)
            return False
        self._failures = 0
        return True

    def _try(self, content: dict[str, Any], also: Sequence[str]) -> Exception | None:
        try:
            # On the disk before the checkpoint is: a resumed run goes on from both.
            self._tracker.flush()
            self._folder.mkdir(exist_ok=True)
            save(self._folder / "last.pt", content, also)
            for old in sorted(self._folder.glob("step-*.pt"))[: -self._keep or None]:
                remove(old)
        except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of torch's
            return error
        return None

    def _failed(self, error: Exception, must: bool) -> None:
        self._failures += 1
        step = step_of(self._folder / "last.pt")
        good = "there is none before it" if step is None else f"the last good one is of step {step}"
        reason = " ".join(str(error).split())
        words = f"The checkpoint of step {self._state.step} cannot be written to {self._folder} ({reason}); {good}."
        if must or self._failures >= FAILED_SAVES:
            raise OSError(f"{words} The run ends: it was number {self._failures} in a row to fail.") from error
        log.warning("%s Training goes on; %d more in a row would end it.", words, FAILED_SAVES - self._failures)


def save(path: Path, content: dict[str, Any], also: Sequence[str] = ()) -> None:
    """Write ``content`` to ``path`` and its sha256 to ``path.sha256``; ``also``: further names of the same file.

    The file is written under another name, flushed to the disk and renamed: a reader finds the old checkpoint or the
    new one, never a part. The further names are hard links where the file system has them, and cost no space.
    OSError or RuntimeError (which is what torch raises on a full disk) where it cannot be written; then whatever was
    there before still is.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        digest = _sha256(temporary)
        _put(temporary, path, digest)
    finally:
        temporary.unlink(missing_ok=True)
    for name in also:
        _name_as_well(path, path.with_name(name), digest)


def remove(path: Path) -> None:
    """Delete a checkpoint and its sha256."""
    path.unlink(missing_ok=True)
    _sidecar(path).unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, or a run folder's last one. ValueError if it is not there, broken, or no checkpoint.

    Only tensors and plain types are read (``weights_only``): a checkpoint cannot run code. One of an older format is
    brought up to this one.
    """
    if path.is_dir():
        path = path / FOLDER / "last.pt"
    if not path.is_file():
        raise ValueError(f"There is no checkpoint {path}.")
    verified = _verify(path)
    content = _read(path)
    if not verified:
        log.warning("%s has no sha256 beside it: its content could not be verified.", path)
    if content["format"] == 1:
        _from_format_1(content)
    if content["format"] == 2:
        _from_format_2(content)
    return content


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint of a run folder that is furthest on and valid; None if there is none at all.

    A broken one is passed over with a warning. ValueError if there are some, and all are broken: it is for a person to
    say that the run starts over.
    """
    steps: dict[Path, int] = {}
    for path in sorted((folder / FOLDER).glob("*.pt"), key=lambda path: path.name != "last.pt"):
        try:
            steps[path] = _read(path, only_look=True)["step"]
        except ValueError as error:
            _pass_over(error)
    for path in sorted(steps, key=lambda path: -steps[path]):
        try:
            return path, load(path)
        except ValueError as error:
            _pass_over(error)
    if any((folder / FOLDER).glob("*.pt")):
        raise ValueError(f"none of the checkpoints in {folder / FOLDER} can be used: move them away to start over.")
    return None


def step_of(path: Path) -> int | None:
    """The step that a checkpoint was saved at; None if it is not there or broken."""
    if not path.is_file():
        return None
    try:
        _verify(path)
        return _read(path, only_look=True)["step"]
    except ValueError:
        return None


def cut_back(folder: Path, step: int, best_step: int) -> bool:
    """Make a run folder's checkpoints what they were at ``step``; returns whether the best model of then is there.

    What came later is removed, and what is broken gets another name. A process that was killed between the names of
    one checkpoint leaves ``best.pt`` behind ``last.pt``; the missing name is made up for.
    """
    folder = folder / FOLDER
    steps = {path: step_of(path) for path in sorted(folder.glob("*.pt"))}
    for name, wanted in (("last.pt", step), ("best.pt", best_step)):
        source = next((path for path, found in steps.items() if found == wanted), None)
        if source is not None and steps.get(folder / name) != wanted:
            _name_as_well(source, folder / name)
            steps[folder / name] = wanted
    for path, found in steps.items():
        if found is None:
            path.rename(path.with_name(f"{path.name}.broken"))
        elif found > step:
            remove(path)
    return steps.get(folder / "best.pt") == best_step


def _pass_over(error: ValueError) -> None:
    log.warning("PASSED OVER: %s Resuming goes on with an older checkpoint, if there is one.", error)


def _verify(path: Path) -> bool:
    """Whether there is a sha256 to compare with; ValueError if it is another one."""
    sidecar = _sidecar(path)
    if sidecar.is_file() and _sha256(path) not in sidecar.read_text().split():
        raise ValueError(f"The checkpoint {path} is broken: its content does not have the sha256 in {sidecar.name}.")
    return sidecar.is_file()


def _read(path: Path, only_look: bool = False) -> dict[str, Any]:
    try:
        # Mapped into memory, only what is looked at is read from the disk.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=only_look)
    except (OSError, MemoryError):  # nothing is wrong with the file
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{path} cannot be read as a checkpoint: {reason}") from error
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found not in (1, 2, FORMAT) or "step" not in content:
        raise ValueError(f"{path} is not a checkpoint of format {FORMAT}, the one this version reads; it is {found}.")
    return content


def _from_format_1(content: dict[str, Any]) -> None:
    """Format 2 also has the averaged model, the generators of Python and NumPy, and what is only counted."""
    content |= {"format": 2, "ema": None, "conflicts": None, "peak_memory": None, "seconds": 0.0}
    content |= {"wandb_id": None, "skips": {"total": 0, "in_a_row": 0}, "unreadable": {}}
    content["rng"] |= {"python": None, "numpy": None}


def _from_format_2(content: dict[str, Any]) -> None:
    """Format 3 also has the generators of every rank, and float16's loss scale."""
    content |= {"format": FORMAT, "rng": [content["rng"]], "scaler": {}}
    content["skips"] |= {"overflow": 0}


def _put(temporary: Path, path: Path, digest: str) -> None:
    new = f"{digest}  {path.name}\n"
    # While the files change places, either content is right.
    old = _sidecar(path).read_text() if _sidecar(path).is_file() else ""
    _write_whole(_sidecar(path), new + old)
    os.replace(temporary, path)
    _write_whole(_sidecar(path), new)
    _flush_folder(path.parent)


def _name_as_well(path: Path, other: Path, digest: str | None = None) -> None:
    temporary = other.with_name(f"{other.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(path, temporary)
        except OSError:  # not every file system has hard links
            shutil.copyfile(path, temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        _put(temporary, other, digest or _sha256(path))
    finally:
        temporary.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    # A new name is on the disk only when its folder is.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _digest(state: Any) -> str:
    """A fingerprint of a nesting of tensors and plain values."""
    digest = hashlib.sha256()
    for leaf in pytree.tree_leaves(state):
        if isinstance(leaf, torch.Tensor):
            digest.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
