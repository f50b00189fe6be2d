"""One self-contained HTML file: tables and runs as JSON, figures as Plotly draws them, and Plotly itself."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mtl.report import figures
from mtl.report.compare import Comparison, Row
from mtl.report.content import content_of, descriptions
from mtl.report.figures.affinity import has_affinity
from mtl.report.figures.conflict import has_conflict
from mtl.report.figures.cost import qualities
from mtl.report.figures.curves import curve_names
from mtl.report.figures.sharing import has_sharing
from mtl.report.figures.tradeoffs import metric_pairs
from mtl.report.tables import Table

HERE = Path(__file__).parent
Choices = Mapping[str, Mapping[str, str]]  # what a reader may choose, each with the figure's arguments


@dataclass(frozen=True)
class Panel:
    """A figure in a section; ``choices``: the figures to choose from, in a field called ``label``."""

    draw: Callable[..., go.Figure]
    label: str = ""
    choices: Callable[[Comparison], Choices] = lambda runs: {"": {}}


@dataclass(frozen=True)
class Section:
    """Panels below a heading; a panel without data is left out. ``rows``: of one row, where that holds, to choose."""

    id: str
    title: str
    panels: tuple[Panel, ...]
    rows: Callable[[Row], bool] | None = None
    text: str = ""
    table: Callable[[Comparison], Table] | None = None  # shown folded, below the panels


def _pairs(runs: Comparison) -> Choices:
    return {f"{x} and {y}": {"x": x, "y": y} for x, y in metric_pairs(runs)}


def _metrics(runs: Comparison) -> Choices:
    return {name: {"metric": name} for name in curve_names(runs)}


def _quality_first(runs: Comparison) -> Choices:
    """As ``_metrics``, with the first metric of validation that is no loss in front."""
    known = _metrics(runs)
    first = next((name for name in known if name.startswith("val/") and "loss" not in name), None)
    return ({first: known[first]} if first else {}) | dict(known)


# The page, from its top to its bottom: the table of results is above, examples and runs are below.
SECTIONS = (
    Section(
        "tradeoffs",
        "Trade-offs",
        (
            Panel(figures.tradeoffs, "metrics", _pairs),
            Panel(figures.cost, "quality", lambda runs: {name: {"quality": name} for name in qualities(runs)}),
        ),
    ),
    Section(
        "curves",
        "Curves",
        (Panel(figures.curves, "metric", _metrics), Panel(figures.curves, "metric", _quality_first)),
    ),
    Section(
        "conflict",
        "Gradient conflict and task weights",
        (Panel(figures.cosines), Panel(figures.conflict), Panel(figures.norms), Panel(figures.weights)),
        rows=has_conflict,
        table=descriptions,
    ),
    Section("affinity", "Which tasks help each other", (Panel(figures.affinity),), rows=has_affinity),
    Section(
        "sharing",
        "What the architecture decides",
        (
            Panel(figures.gates),
            Panel(figures.entropies),
            Panel(figures.selected),
            Panel(figures.alphas),
            Panel(figures.penalties),
        ),
        rows=has_sharing,
        text="The mean of a batch. Gates are those of one run, the first seed's, because an expert's number means "
        "nothing in another; the rest is averaged over the finished runs.",
    ),
)


def page(comparisons: Sequence[Comparison], title: str) -> str:
    """The HTML of the page. Content from runs is embedded as JSON and shown as text, so it cannot inject markup."""
    content, drawn = contents(comparisons, title)
    return fill(content, drawn)


def contents(comparisons: Sequence[Comparison], title: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What the page shows: its content, and its figures by their ids, each as JSON."""
    drawn: dict[str, str] = {}
    content = [content_of(c) | {"sections": list(_sections(c, f"{i}-", drawn))} for i, c in enumerate(comparisons)]
    return {"title": title, "comparisons": content}, drawn


def _sections(runs: Comparison, prefix: str, drawn: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The sections with something to show; their figures are added to ``drawn``, each once."""
    ids: dict[tuple[Any, ...], str | None] = {}

    def id_of(draw: Callable[..., go.Figure], arguments: Mapping[str, str]) -> str | None:
        key = (draw, *arguments.values())
        if key not in ids:
            figure = draw(runs, **arguments)
            ids[key] = f"{prefix}{len(drawn)}" if figure.data or figure.layout.meta["caption"] else None
            if ids[key] is not None:
                drawn[f"{prefix}{len(drawn)}"] = _json(figure.to_plotly_json())
        return ids[key]

    for section in SECTIONS:
        rows = [row.label for row in runs.rows if section.rows(row)] if section.rows else None
        panels = []
        for panel in section.panels:
            choices = panel.choices(runs) if rows is None else {label: {"row": label} for label in rows}
            found = {choice: id_of(panel.draw, arguments) for choice, arguments in choices.items()}
            found = {choice: name for choice, name in found.items() if name is not None}
            panels += [{"name": panel.draw.__name__, "label": panel.label, "figures": found}] * bool(found)
        if panels:
            shown = {"id": section.id, "title": section.title, "text": section.text, "rows": rows, "panels": panels}
            yield shown | {"table": asdict(section.table(runs)) if section.table else None}


def fill(content: Mapping[str, Any], drawn: Mapping[str, str], live: bool = False) -> str:
    """The page with this content, and with figures that are parsed one by one, when they are drawn.

    A ``live`` page asks the server that it came from for what is new (mtl.report.watch); any other one asks nobody.
    """
    parts = {name: (HERE / f"page.{name}").read_text() for name in ("html", "css", "js")}
    scripts = [f'<script id="{name}" type="application/json">{figure}</script>' for name, figure in drawn.items()]
    parts |= {"title": html.escape(content["title"]), "plotly": get_plotlyjs(), "data": _json(content)}
    parts |= {"figures": "\n".join(scripts), "connect": "'self'" if live else "'none'"}
    before, *pieces = parts["html"].split("<!--")
    for piece in pieces:  # in one pass, so that inserted text is never expanded
        name, _, after = piece.partition("-->")
        before += parts[name] + after
    return before


def _json(content: Any) -> str:
    """JSON that may stand in a script element."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
