"""The command line that trains some of a run's tasks by themselves, as the run has trained them all."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from mtl.report.runs import Run

DROPPED = ("tasks=", "conflict.", "+conflict.", "skip_finished=", "resume=", "hydra.", "hydra/")  # of every group
HEAD_SET = ("heads", "losses", "metrics")  # may have more tasks than are trained; as does what data has


def group_command(run: Run, group: Sequence[str]) -> tuple[str, list[str]]:
    """The command line for the tasks in ``group``, and the run's overrides that it leaves out, in whole or in part.

    These are the ones that name another task, by which the command would be refused, or train another model. What a
    study's file says of other tasks is deleted by ``~key``.
    """
    others = [task for task in run.config.get("heads") or () if task not in group]
    kept, left_out = [], []
    for override in run.overrides:
        if override.startswith(DROPPED):
            continue
        own = _adapted(override, run, group, others)
        kept += [own] if own is not None else []
        left_out += [override] if own != override else []
    for section in sorted(run.config.keys() - {*HEAD_SET, "data"}) if others else ():
        for key in sorted(_of_others(run.config[section], section, run.config["heads"], others)):
            if not any(_key(override) == key or _key(override) == key.rpartition(".")[0] for override in left_out):
                kept.append(f"~{key}")
    alone = ["conflict.affinity_every=0"] if len(group) == 1 else []
    words = [*kept, f"tasks=[{','.join(group)}]", *alone]
    return " ".join(["mtl-train", *map(shlex.quote, words)]), left_out


def _adapted(override: str, run: Run, group: Sequence[str], others: Collection[str]) -> str | None:
    """The override as it is for the tasks in ``group``; None where it is for others alone."""
    key, (start, _, text) = _key(override), override.partition("=")
    section, *path = key.split(".")
    heads, value = run.config.get("heads") or {}, run.config.get(section)
    if section == "data" or not others:
        return override
    if section == "trainer":
        monitor = str((run.config.get("trainer") or {}).get("monitor"))
        return None if key in ("trainer.monitor", "trainer.mode") and _names(monitor, others) else override
    if section in HEAD_SET and path and path[0] in others and not _completes(run, path[0]):
        return None
    for part in path:
        if section not in HEAD_SET and _is_by_task(value, heads) and part in others:
            return None
        value = value.get(part) if isinstance(value, Mapping) else None
    if text.startswith("{") and section not in HEAD_SET and _is_by_task(value, heads):
        return f"{start}={{{','.join(f'{task}:{own}' for task, own in value.items() if task in group)}}}"
    if text.startswith("[") and isinstance(value, list):
        if path[-1:] == ["preference"]:  # a number a task, in their order
            value = [own for task, own in zip(run.tasks, value, strict=False) if task in group]
        elif value and set(value) <= set(heads):
            value = [task for task in value if task in group]
        return f"{start}=[{','.join(map(str, value))}]" if value else None
    return None if section == "strategy" and text in others else override


def _key(override: str) -> str:
    """Where in the configuration an override writes; as ``heads.left`` of ``+head@heads.left=linear``."""
    return override.partition("=")[0].lstrip("+~").rpartition("@")[2]


def _is_by_task(value: Any, heads: Collection[str]) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping) and bool(value) and set(value) <= set(heads)


def _names(formula: str, tasks: Collection[str]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(task)}(?!\w)", formula) for task in tasks)


def _completes(run: Run, task: str) -> bool:
    """Whether overrides add only the head, or only the loss, of a task that a study's file has the other one of."""
    added = {_key(override).split(".")[0] for override in run.overrides
             if override.startswith("+") and _key(override).split(".")[1:2] == [task]}  # fmt: skip
    return len(added & {"heads", "losses"}) == 1


def _of_others(value: Any, path: str, heads: Collection[str], others: Collection[str]) -> Iterator[str]:
    """The keys below ``path`` that are a task's of ``others``, in a mapping by task."""
    for key, own in value.items() if isinstance(value, Mapping) else ():
        if _is_by_task(value, heads) and key in others:
            yield f"{path}.{key}"
        else:
            yield from _of_others(own, f"{path}.{key}", heads, others)
