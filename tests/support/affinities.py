"""Run folders with affinities of given means."""

import json
from pathlib import Path

from support.report_runs import accuracies, write_run

from mtl.descriptions import AFFINITIES

Pairs = dict[tuple[str, str], float]


def write_affinities(
    folder: Path, lookahead: Pairs | None, estimate: Pairs | None, seed: int = 0, rows: int = 20, **config: object
) -> Path:
    """A run of ``rows`` rows; the values lie around their mean, up and down in turn by a tenth of it."""
    write_run(folder, "detached", seed, accuracies(0.5, 0.5), rows=rows, **config)
    lines = []
    for number, row in enumerate(map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())):
        for kind, pairs in (("lookahead", lookahead), ("estimate", estimate)):
            swing = 1 + 0.1 * (-1) ** (number // 2)
            own = {f"{AFFINITIES[kind]}{a}→{b}": swing * value for (a, b), value in (pairs or {}).items()}
            row |= own if row["split"] == "train" else {}
        lines.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder
