"""The tables, from the cells' numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from goals import BY_HAND, SUM, goal_table
from results import Cells, milliseconds, of_kind, over_tasks, ratio, spread

MIB = 2**20
COLUMNS = (
    "naive, again", "plain PyTorch: sum of losses", "detached", "detached, conflict metrics", "MGDA, features",
    "MGDA, parameters",
)  # fmt: skip


def document(cells: Cells) -> str:
    """All of them as Markdown, with a heading each; none where its cells were not measured."""
    families = over_tasks(cells)
    sections = {"Goals": goal_table(cells)}
    for problem, family in families.items():
        columns = {f"K = {tasks}": cell for tasks, cell in family.items()}
        sections[f"{problem}: time of a step, ratio to naive"] = _table(columns, _ratio)
        sections[f"{problem}: peak memory of a step, MiB (ratio to naive)"] = _table(columns, _peak)
    sections |= {
        "Other problems: time of a step, ratio to naive": other_problems(cells),
        "Our step over the same by hand": by_hand(cells),
        "The layer in other loops: time, ratio to the sum of the losses": layer(cells, _over_sum),
        "The layer alone, ms (share of the sum's step)": layer_alone(of_kind(cells, "layer")),
        "The layer in other loops: peak memory of a step, MiB": layer(of_kind(cells, "layer"), _mib),
        "40 linear heads on a trunk that costs nothing, ratio to naive": _table(of_kind(cells, "heads_alone"), _ratio),
        "Where a step's time goes, ms (share)": parts(cells),
        "Peak memory of a step by the process's high-water mark": high_water(cells),
        "The training loop, bf16, and whole commands": wholes(cells),
        "Not measured": not_measured(cells),
        "Machine": machine(cells),
    }
    return "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)


def other_problems(cells: Cells) -> str:
    """A line a problem that was measured for one number of tasks."""
    in_families = [cell for family in over_tasks(cells).values() for cell in family.values()]
    lines = [["problem", "naive, ms", *COLUMNS, "peak memory of detached"]]
    for name, cell in of_kind(cells, "steps").items():
        if cell not in in_families:
            rows = cell["rows"]
            peak = f"{rows['detached']['peak'] / rows['naive']['peak']:.2f}"
            ratios = [str(ratio(rows, row)) for row in COLUMNS]
            lines.append([name, f"{milliseconds(rows, 'naive'):.1f}", *ratios, peak])
    return _markdown(lines) if len(lines) > 1 else ""


def by_hand(cells: Cells) -> str:
    """A line a problem: what the framework adds to a hand-written loop."""
    measured = of_kind(cells, "steps") | of_kind(cells, "heads_alone")
    lines = [["problem", *BY_HAND]]
    for name, cell in measured.items():
        lines.append([name, *(str(ratio(cell["rows"], row, hand)) for row, hand in BY_HAND.items())])
    return _markdown(lines) if measured else ""


def layer(cells: Cells, show: Callable[[dict[str, Any], str], str]) -> str:
    """A line a step, a column a number of tasks, by hand and then in Lightning's Trainer."""
    measured = of_kind(cells, "layer") | of_kind(cells, "lightning")
    names = {"layer": "by hand", "lightning": "Lightning"}
    return _table({f"{names[c['kind']]}, K = {c['arguments']['tasks']}": c for c in measured.values()}, show)


def layer_alone(cells: Cells) -> str:
    """A line a rule: what the layer itself takes, forward and backward."""
    lines = [["", *(f"K = {cell['arguments']['tasks']}" for cell in cells.values())]]
    for row in next(iter(cells.values()), {}).get("alone", ()):
        times = [(1000 * median(c["alone"][row]), milliseconds(c["rows"], SUM)) for c in cells.values()]
        lines.append([row, *(f"{time:.1f} ({time / whole:.1%})" for time, whole in times)])
    return _markdown(lines) if cells else ""


def high_water(cells: Cells) -> str:
    """A line a row of the one problem."""
    found = {cell["row"]: cell["bytes"] for cell in of_kind(cells, "high_water").values()}
    naive = found.get("naive")
    lines = [[row, f"{value / MIB:,.0f}", f"{value / naive:.2f}" if naive else ""] for row, value in found.items()]
    return _markdown([["", "MiB", "to naive"], *lines]) if found else ""


def parts(cells: Cells) -> str:
    """A line a step: every part's median, and its share of the whole step's."""
    lines: list[list[str]] = []
    for name, cell in of_kind(cells, "parts").items():
        for step, found in cell["parts"].items():
            times = {part: 1000 * median(values) for part, values in found.items()}
            whole = times.pop("the whole step")
            lines = lines or [["problem", "step", "whole", *times]]
            shares = [f"{time:.2f} ({time / whole:.1%})" if time else "" for time in times.values()]
            lines.append([name.removeprefix("parts-"), step, f"{whole:.1f}", *shares])
    return _markdown(lines) if lines else ""


def wholes(cells: Cells) -> str:
    """A line each: ratios where something is compared, else seconds."""
    lines = []
    for cell in of_kind(cells, "loop").values():
        speeds = [cell["images"] / spread(row["seconds"]).middle for row in cell["rows"].values()]
        data = "data ready" if cell["arguments"]["ready"] else "data made by the loop"
        words = f"images a second, {data}: " + "bare step {:.0f}, mtl.training.loop.fit {:.0f}".format(*speeds)
        lines.append([words, f"ratio {ratio(cell['rows'], 'bare step', 'mtl.training.loop.fit')}"])
    for name, cell in of_kind(cells, "bf16").items():
        lines.append([f"{name} over float32", f"ratio {ratio(cell['rows'], 'bf16', 'float32')}"])
    for cell in (of_kind(cells, "startup") | of_kind(cells, "demo")).values():
        lines += [[f"`{name}`", f"{spread(row['seconds'])} s"] for name, row in cell["rows"].items()]
    return _markdown([["", "median (quartiles)"], *lines]) if lines else ""


def not_measured(cells: Cells) -> str:
    """What is missing, and why."""
    lines = []
    for name, cell in cells.items():
        lines += [f"- {name}: {cell[key]}" for key in ("not measured", "failed") if key in cell]
        lines += [f"- {row} in {name}: {reason}" for row, reason in cell.get("not possible", {}).items()]
    return "\n".join(lines)


def machine(cells: Cells) -> str:
    """What it was measured on."""
    for cell in cells.values():
        if "machine" in cell:
            versions = ", ".join(f"{name} {value}" for name, value in cell["versions"].items())
            clock = ", CPU time" if cell.get("clock") == "process_time" else ""
            return f"{cell['machine']}, {cell['threads']} threads{clock}; {versions}"
    return ""


def _ratio(cell: dict[str, Any], row: str) -> str:
    time, compared = f"{milliseconds(cell['rows'], row):.1f} ms", str(ratio(cell["rows"], row))
    if row == "naive":
        return time
    return compared if cell["device"] == "cpu" else f"{compared}, {time}"  # on a GPU, absolute times mean something


def _over_sum(cell: dict[str, Any], row: str) -> str:
    rows = cell["rows"]
    return f"{milliseconds(rows, row):.1f} ms" if row == SUM else str(ratio(rows, row, SUM))


def _mib(cell: dict[str, Any], row: str) -> str:
    return f"{cell['rows'][row]['peak'] / MIB:,.1f}"


def _peak(cell: dict[str, Any], row: str) -> str:
    own, naive = (cell["rows"][name]["peak"] for name in (row, "naive"))
    return f"{own / MIB:,.1f} ({own / naive:.2f})"


def _table(columns: Cells, show: Callable[[dict[str, Any], str], str]) -> str:
    """A line a step, a column a cell."""
    lines = [["", *columns]]
    for row in dict.fromkeys(row for cell in columns.values() for row in cell["rows"]):
        lines.append([row, *(show(cell, row) if row in cell["rows"] else "" for cell in columns.values())])
    return _markdown(lines) if columns else ""


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rest])
