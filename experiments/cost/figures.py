"""The figure: how the cost of a step grows, from the cells' numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from goals import is_at_parameters, is_ours
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import Cells, Spread, milliseconds, of_kind, over_tasks, ratio, spread

# Okabe and Ito's colours, which the colour-blind tell apart.
STYLES = {
    "naive": ("0.45", "s"),
    "detached": ("#0072B2", "o"),
    "detached, conflict metrics": ("#56B4E9", "o"),
    "MGDA, features": ("#009E73", "^"),
    "MGDA, parameters": ("#D55E00", "v"),
    "quickest TorchJD": ("#CC79A7", "D"),
    "quickest LibMTL": ("#E69F00", "D"),
}
MIB = 2**20
LINE = 14  # pixels of a line of text
Series = dict[str, dict[int, Spread]]  # a line each: what was measured at every place of the axis


def draw(cells: Cells, path: Path) -> None:
    """Four panels; one without its cells stays away."""
    tasks = next(iter(over_tasks(cells).values()), {})
    steps = [cell for cell in of_kind(cells, "steps").values() if cell["arguments"]["heads"] == "linear"]
    beside = [cell for cell in steps if cell["arguments"]["tasks"] == 8 and _width(cell)]
    batches = {cell["arguments"]["batch"]: cell for cell in beside if _width(cell) == 512}
    batch = next((cell["arguments"]["batch"] for cell in tasks.values()), None)
    widths = {_width(cell): cell for cell in beside if cell["arguments"]["batch"] == batch}
    near = [name for name in STYLES if not is_at_parameters(name) and "quickest" not in name]
    panels = [
        ("step time over K tasks, to naive", tasks, _time, list(STYLES)),
        ("peak memory of a step over K tasks, MiB", tasks, _peak, list(STYLES)),
        ("step time over the batch size, K = 8, to naive", batches, _time, near),
        ("step time over the number of features, K = 8, to naive", widths, _time, near),
    ]
    panels = [panel for panel in panels if len(panel[1]) > 1]
    if not panels:
        return
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(13, 4.4 * rows), layout="constrained")
    for number, (title, measured, value, names) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, 2, number)
        _panel(axes, _series(measured, value, names), logarithmic=len(names) > len(near))
        axes.set_title(title, loc="left", fontsize="medium")
    figure.savefig(path, dpi=100)


def _width(cell: Mapping[str, Any]) -> int:
    trunk, _, width = cell["arguments"]["trunk"].partition("+")
    return (int(width) if width else 512) if trunk == "resnet18-64" else 0


def _time(rows: Mapping[str, Any], name: str) -> Spread:
    return ratio(rows, name)


def _peak(rows: Mapping[str, Any], name: str) -> Spread:
    return spread([rows[name]["peak"] / MIB])


def _series(
    measured: Mapping[int, dict[str, Any]], value: Callable[[Mapping, str], Spread], names: Sequence[str]
) -> Series:
    series: Series = {name: {} for name in names}
    for place, cell in sorted(measured.items()):
        rows = cell["rows"]
        for name in names:
            row = _quickest(rows, name.removeprefix("quickest ")) if name.startswith("quickest") else name
            if row in rows:
                series[name][place] = value(rows, row)
    return {name: line for name, line in series.items() if len(line) > 1}


def _quickest(rows: Mapping[str, Any], library: str) -> str:
    own = [row for row in rows if row.startswith(library) and is_at_parameters(row) and not is_ours(row)]
    return min(own, key=lambda row: milliseconds(rows, row), default="")


def _panel(axes: Axes, series: Series, logarithmic: bool) -> None:
    for name, line in series.items():
        color, marker = STYLES[name]
        axes.plot(list(line), [value.middle for value in line.values()], marker=marker, color=color, markersize=5)
        axes.fill_between(
            list(line), [v.low for v in line.values()], [v.high for v in line.values()], color=color, alpha=0.2, lw=0
        )
    places = sorted({place for line in series.values() for place in line})
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.minorticks_off()
    if logarithmic:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:,.4g}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    _label(axes, series)


def _label(axes: Axes, series: Series) -> None:
    """A line's name at its end, moved up where it would lie on the one below."""
    axes.figure.canvas.draw()
    ends = {name: (max(line), line[max(line)].middle) for name, line in series.items()}
    last: dict[int, float] = {}
    for name, (x, y) in sorted(ends.items(), key=lambda end: end[1][1]):
        inside = x < max(x for x, _ in ends.values())  # there, other lines go on to the right
        last[x] = max(axes.transData.transform((x, y))[1], last.get(x, float("-inf")) + LINE)
        place = x, axes.transData.inverted().transform((0, last[x]))[1]
        shift, side = ((-8, 4), "right") if inside else ((8, 0), "left")
        axes.annotate(name, place, xytext=shift, textcoords="offset points", va="center", ha=side, fontsize=8,
                      color=STYLES[name][0], annotation_clip=False)  # fmt: skip
