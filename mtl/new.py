"""The command mtl-new: a small project of your own with a data set, a head, a configuration, a test and a README."""

from __future__ import annotations

import argparse
import keyword
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

# In an installed package the template lies inside mtl/, in the repository beside it.
HERE = Path(__file__).resolve().parent
TEMPLATE = next(path for path in (HERE / "template", HERE.parent / "template") if path.is_dir())
PLACEHOLDER = "my_project"  # in the template's files and in their names
LEFT_OUT = ("__pycache__", ".pytest_cache", "outputs")  # where the template itself has been tried


def create(folder: Path) -> None:
    """Copy the template to ``folder``, under its name; ValueError for one that is taken or cannot be imported."""
    name = folder.name
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        raise ValueError(f"{name} is no name of a Python package: lower-case letters, digits and _, as in birds_2.")
    if folder.exists():
        raise ValueError(f"{folder} is there already; give another name, or move it away.")
    if find_spec(name) is not None:
        raise ValueError(f"{name} is an installed Python package, which would be imported instead; give another name.")
    shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_file():
            path.write_text(path.read_text().replace(PLACEHOLDER, name))
        path.rename(path.with_name(path.name.replace(PLACEHOLDER, name)))


def main() -> None:
    """Make the project, and say how to train it."""
    parser = argparse.ArgumentParser("mtl-new", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="NAME", help="the project's name, or a path that ends in it")
    folder = parser.parse_args().folder
    try:
        create(folder)
    except (ValueError, OSError) as error:
        sys.exit(f"mtl-new: {error}")
    print(f"{folder} is there. Train it, and run its tests:")
    print(f"    cd {folder}\n    mtl-train -cd conf +experiment={folder.name}\n    python -m pytest")


if __name__ == "__main__":
    main()
