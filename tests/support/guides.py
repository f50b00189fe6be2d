"""The pages of the documentation, and the snippets in them."""

import re
import shlex
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted([*DOCS.glob("guide/*.md"), *DOCS.glob("reference/*.md"), DOCS / "index.md"])
COMMAND = r"^ {4,}(mtl-\w+|python -m mtl\.\S+|torchrun \S+ -m mtl\.train)( .*?)?(?:  #.*)?$"


def guide(name):
    """The text of a guide."""
    return (DOCS / "guide" / f"{name}.md").read_text()


def blocks(text, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text):
    """The commands of a page's indented blocks, as ``(program, words)``; a backslash goes on in the next line."""
    lines = re.sub(r"\\\n *", "", text)
    return [(program, shlex.split(rest)) for program, rest in re.findall(COMMAND, lines, re.MULTILINE)]


def write_files(text, folder):
    """Write the blocks that begin with a file's name, as ``# my_conf/heads/mine.yaml``, into a folder."""
    for block in blocks(text, "yaml") + blocks(text, "python"):
        name = re.match(r"(?:# @package \S+\n)?# (\S+\.(?:yaml|py))\n", block)
        if name:
            file = folder / name[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block)


def with_run(code, folder):
    """A snippet with a run of the test's in the place of the reader's."""
    return re.sub(r"outputs/(…|table/DATE/TIME)", str(folder), code)
