"""The command mtl-export: a trained model for another runtime, or as a folder for a hub."""

from __future__ import annotations

import argparse
import logging
import sys
from importlib.util import find_spec
from pathlib import Path

from mtl.preference import parsed

EPILOG = """\
a server:  mtl-export outputs/… --format onnx --out model.onnx
a hub:     mtl-export outputs/… --format safetensors --out model --also outputs/…/1 outputs/…/2
one head:  mtl-export outputs/… --format pt2 --tasks left"""
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": (), "safetensors": ("safetensors",)}
FILES = {"model.safetensors", "config.yaml", "data.json", "README.md", "run.png"}  # of mtl.prediction.folder
ENDINGS = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ""}


def export(given: argparse.Namespace) -> str:
    """Write what a command line asks for; returns a sentence on what was done. ValueError for a mistake in it."""
    from mtl.prediction.export import write_program
    from mtl.prediction.folder import write_folder
    from mtl.prediction.predictor import load
    from mtl.runs.files import run_folder

    preference = given.preference and parsed(given.preference, "--preference")
    predictor = load(given.model, given.which, "cpu", "32", given.tasks, preference)
    if given.format == "safetensors":
        runs = [own for path in (given.model, *given.also) if (own := run_folder(path)) is not None]
        write_folder(predictor, runs, given.out)
        return f"{given.out}: {', '.join(predictor.tasks)}; mtl.load gives the same weights again"
    difference = write_program(predictor, given.format, given.out)
    return f"{given.out}: {', '.join(predictor.tasks)}; the largest difference to the model is {difference:.2g}"


def _check(given: argparse.Namespace) -> None:
    """ValueError for a mistake that needs no torch to be seen."""
    for path in (given.model, *given.also):
        if not path.exists():
            raise ValueError(f"There is no checkpoint {path}.")
    if given.preference and given.format == "safetensors":
        raise ValueError("--preference: --format safetensors keeps every member; mtl.load takes the preference then.")
    missing = [name for name in NEEDS[given.format] if find_spec(name) is None]
    if missing:
        raise ValueError(f"--format onnx needs {' and '.join(missing)}: pip install 'mtl-torch[onnx]'.")
    given.out = given.out or Path(f"model{ENDINGS[given.format]}")
    if given.out.suffix != ENDINGS[given.format] and given.format != "safetensors":
        raise ValueError(f"--out {given.out} must end in {ENDINGS[given.format]}.")
    if given.out.exists() and not given.overwrite:
        raise ValueError(f"{given.out} exists; --overwrite replaces it.")
    if not given.out.absolute().parent.is_dir():
        raise ValueError(f"There is no folder {given.out.absolute().parent} for {given.out.name}.")
    if given.out.is_dir() and given.format != "safetensors":
        raise ValueError(f"{given.out} is a folder, and --format {given.format} writes a file.")
    if given.out.is_dir() and (others := {own.name for own in given.out.iterdir()} - FILES):
        raise ValueError(f"{given.out} holds {min(others)}, which mtl-export has not written: choose another --out.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "mtl-export", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a checkpoint, or a run folder for its best one")
    parser.add_argument("--format", choices=tuple(NEEDS), required=True, help="safetensors: a folder for mtl.load")
    parser.add_argument("--out", type=Path, help="the file, or the folder; default: model.onnx, model.pt2, model")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="these tasks alone")
    parser.add_argument(
        "--preference", nargs="+", metavar="TASK=SHARE", help="of a model with members, the point of its front"
    )
    parser.add_argument(
        "--also", type=Path, nargs="+", default=[], metavar="RUN", help="further seeds, for the model card's intervals"
    )
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", dest="which", help="of a run folder")
    parser.add_argument("--overwrite", action="store_true", help="replace what is at --out")
    return parser


def main() -> None:
    """Print what was written, and how far it is from the model; a mistake is one sentence, and writes nothing."""
    given = _parser().parse_args()
    logging.basicConfig(format="mtl-export: %(message)s")
    try:
        _check(given)
        print(export(given))
    except (ValueError, OSError) as error:
        sys.exit(f"mtl-export: {error}")


if __name__ == "__main__":
    main()
