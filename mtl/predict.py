"""The command mtl-predict: what a trained model, or several of one configuration, says of new files or rows."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtl.errors import first_line, require_positive
from mtl.prediction.output import FORMATS, Output, check_out
from mtl.preference import parsed

if TYPE_CHECKING:
    from mtl.prediction.ensemble import Ensemble
    from mtl.prediction.inputs import Inputs

log = logging.getLogger(__name__)

EPILOG = """\
an image model:  mtl-predict outputs/… new_images/ --out predictions.csv
maps:            mtl-predict outputs/… 'rooms/*.jpg' --out maps
several seeds:   mtl-predict outputs/…/0 new.csv --out predictions.csv --also outputs/…/1 outputs/…/2"""

Rows = dict[int, dict[str, Any]]  # by the input's index, the cells of its row


def predict(given: argparse.Namespace) -> str:
    """Predict what a command line asks for; returns a sentence on what was done.

    ValueError for a mistake in it, before anything is written; DataError for an input that cannot be read.
    """
    from mtl.prediction.ensemble import Ensemble
    from mtl.prediction.inputs import Inputs, find_inputs
    from mtl.prediction.predictor import load

    preference = given.preference and parsed(given.preference, "--preference")
    options: dict[str, Any] = dict(which=given.which, device=given.device, precision=given.precision, tasks=given.tasks)
    ensemble = Ensemble([load(path, **options, preference=preference) for path in (given.checkpoint, *given.also)])
    _check_form(ensemble, given.out)
    missing = ensemble.members[0].config["data"].get("missing") or ()
    raws, labels = find_inputs(given.inputs, ensemble.preprocess, given.column, missing)
    inputs = Inputs(raws, labels, ensemble.collate)
    if given.out is None:
        for rows in _rows(ensemble, inputs, given, Path(), set()):
            print("\n".join(json.dumps(row, ensure_ascii=False) for row in rows.values()), flush=True)
        return ""
    output = Output(given.out, _job(ensemble, inputs, given), given.resume, given.overwrite)
    try:
        for rows in _rows(ensemble, inputs, given, output.folder, output.done):
            output.add(rows)
        if not output.done:
            raise ValueError(f"none of {len(inputs)} inputs can be read, so {given.out} is not written.")
    except BaseException:
        if output.leave():
            log.warning("%d of %d inputs are in %s; --resume goes on.", len(output.done), len(inputs), output.folder)
        raise
    output.finish()
    left = len(inputs) - len(output.done)
    return f"{given.out}: {len(output.done)} of {len(inputs)} inputs" + (
        f"; {left} LEFT OUT, unreadable" if left else ""
    )


def _check_form(ensemble: Ensemble, out: Path | None) -> None:
    """ValueError for maps that are to go into a table, for a folder without a map, and for tokens without the next."""
    from mtl.prediction.generate import TASK, generates

    tokens = [task for task, answer in ensemble.answers.items() if answer.kind == "token"]
    if tokens and not generates(ensemble):
        raise ValueError(f"a text goes on by the task {TASK}, which is not among {', '.join(tokens)}.")
    maps = [task for task, answer in ensemble.answers.items() if answer.is_map]
    if maps and (out is None or out.suffix):
        raise ValueError(
            f"{', '.join(maps)}: an array an input, which no table holds; give --out FOLDER, or --tasks without them."
        )
    if not maps and out is not None and not out.suffix:
        raise ValueError(f"--out {out} must end in {', '.join(FORMATS)}: no task gives a map, so no folder is needed.")


def _job(ensemble: Ensemble, inputs: Inputs, given: argparse.Namespace) -> dict[str, Any]:
    """What must be the same for a job to go on."""
    from mtl.data.metadata import digest

    members = [{"path": str(m.path.absolute()), "step": m.step, "tasks": m.tasks} for m in ensemble.members]
    names = digest(json.dumps(inputs.labels).encode())
    options = {key: getattr(given, key) for key in ("all", "tokens", "precision", "preference")}
    return {"members": members, "inputs": names, **options}


def _rows(
    ensemble: Ensemble, inputs: Inputs, given: argparse.Namespace, folder: Path, done: set[int]
) -> Iterator[Rows]:
    """The rows of the inputs that are not ``done``, a batch at a time; maps are written below ``folder``."""
    from tqdm import tqdm

    from mtl.data.loader import Batches, closing
    from mtl.prediction.predictor import BATCH

    texts = ensemble.preprocess.takes == "text"  # of different lengths, which make no batch
    own = ensemble.members[0].config["data"].get("batch_size")
    size = 1 if texts else given.batch_size or (own if isinstance(own, int) else BATCH)
    left = [index for index in range(len(inputs)) if index not in done]
    keys = [(0, left[start : start + size]) for start in range(0, len(left), size)]
    batches = Batches(inputs, keys, 0, given.workers, split="input", on_error=given.on_error)
    with tqdm(total=len(inputs), initial=len(done), disable=None, unit=" inputs") as bar, closing(batches) as iterator:
        for batch in iterator:
            yield _answers(ensemble, inputs, batches.indices, batch, given, folder)
            bar.update(len(batches.indices))


def _answers(
    ensemble: Ensemble, inputs: Inputs, indices: list[int], batch: Any, given: argparse.Namespace, folder: Path
) -> Rows:
    from mtl.prediction.generate import generate, generates
    from mtl.prediction.maps import save_map

    if generates(ensemble):
        return {i: inputs.labels[i] | {"text": generate(ensemble, batch, given.tokens)} for i in indices}
    scores, spread = ensemble.scores(batch)
    rows: Rows = {}
    for place, index in enumerate(indices):
        row = dict(inputs.labels[index])
        for task, answer in ensemble.answers.items():
            own, between = scores[task][place], None if spread is None else spread[task][place]
            if answer.is_map:
                cells: dict[str, Any] = dict(save_map(folder, inputs.places[index], task, answer, own, between))
            else:
                cells = answer.cells(task, own, between, given.all)
            if twice := row.keys() & cells.keys():
                raise ValueError(f"two columns would be named {min(twice)}: predict one of the tasks alone by --tasks.")
            row |= cells
        rows[index] = row
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "mtl-predict", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a checkpoint, or a run folder for its best one")
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="a file, a folder, a glob, or a table (CSV, Parquet)"
    )
    parser.add_argument(
        "--out", type=Path, help=f"a file ending in {', '.join(FORMATS)}, or a folder for maps; else the terminal"
    )
    parser.add_argument(
        "--also", type=Path, nargs="+", default=[], metavar="RUN", help="further models: the mean and the spread"
    )
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="these tasks alone")
    parser.add_argument(
        "--preference", nargs="+", metavar="TASK=SHARE", help="of a model with members, the point of its front"
    )
    parser.add_argument("--all", action="store_true", help="the probabilities of all classes")
    parser.add_argument("--column", help="of a table, the one with the images' paths, or the texts")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", dest="which", help="of a run folder")
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="an input that cannot be read: stop, or leave it out",
    )
    parser.add_argument("--resume", action="store_true", help="go on with a job that was stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, xpu, mps; auto: the first GPU, if there is one"
    )
    parser.add_argument("--precision", choices=("32", "bf16", "fp16"), help="default: that of the training")
    parser.add_argument("--batch-size", type=int, help="default: that of the training")
    parser.add_argument("--workers", type=int, default=0, help="processes that read inputs; 0: this one")
    parser.add_argument("--tokens", type=int, default=100, help="of text, how many tokens to go on with")
    return parser


def main() -> None:
    """Print where the predictions are, or the predictions themselves; a mistake is one sentence, and writes nothing."""
    given = _parser().parse_intermixed_args()
    logging.basicConfig(format="mtl-predict: %(message)s")
    try:  # what needs no torch comes first
        for path in (given.checkpoint, *given.also):
            if not path.exists():
                raise ValueError(f"There is no checkpoint {path}.")
        require_positive(**{"--tokens": given.tokens, "--batch-size": given.batch_size or 1})
        if given.out is not None:
            check_out(given.out, given.overwrite)
        from mtl.data.loader import DataError

        try:
            done = predict(given)
        except DataError as error:
            raise ValueError(f"{first_line(error)} (--on-error skip leaves such inputs out)") from error
    except (ValueError, OSError) as error:
        sys.exit(f"mtl-predict: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    if done:
        print(done)


if __name__ == "__main__":
    main()
