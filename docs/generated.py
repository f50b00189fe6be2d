"""Sphinx extension: tables made from the code when the site is built.

``{generated} keys`` in a page is replaced by what the function ``keys`` of this file returns, in Markdown.
"""

import inspect
import re
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from omegaconf import OmegaConf
from sphinx.util.docutils import SphinxDirective
from strategy_table import HEAD, strategy_rows

import mtl.weightings
from mtl.config import reference
from mtl.descriptions import DESCRIPTIONS

CONF = Path(__file__).resolve().parents[1] / "conf"
FOLLOWING = ("heads", "losses")  # the data: an option for each, which needs no words


def keys():
    """Every key with type, default and meaning; whether a resumed run may change it."""
    rows = [
        [f"`{key.name}`", key.type, f"`{key.default}`", key.meaning, "may change" if key.changeable else ""]
        for key in reference.keys(CONF)
    ]
    return table(["key", "value", "default", "meaning", "on resuming"], rows)


def groups():
    """Every group, what it is, and its options."""
    rows = [
        [f"`{name}`", meaning, " ".join(f"`{file.stem}`" for file in files_of(name)) or "–"]
        for name, meaning in reference.groups().items()
    ]
    return table(["group", "what it is", "options"], rows)


def options():
    """The options of every group but those that follow the data, each with the comment of its file."""
    parts = []
    for group, meaning in reference.groups().items():
        if files_of(group) and group not in FOLLOWING:
            rows = [[f"`{file.stem}`", reference.meaning_of(file)] for file in files_of(group)]
            parts += [f"## `{group}`", f"{meaning[0].upper()}{meaning[1:]}.", table(["option", "what it is"], rows)]
    return "\n\n".join(parts)


def strategies():
    """What each rule promises, needs and costs, and when it fails."""
    return table(HEAD, strategy_rows())


def weightings():
    """What each weighting is, by the first sentence of its class, and what it needs."""
    rows = []
    for file in files_of("weighting"):
        cls = getattr(mtl.weightings, OmegaConf.load(file)["_target_"].rpartition(".")[2])
        wants = {
            "all losses of a step before the first backward of the trunk": cls.needs_all_losses,
            "the Gram matrix in every step": cls.needs_gram,
            "one more forward pass in every step": cls.needs_losses_after_update,
        }
        words = " ".join(inspect.getdoc(cls).partition("\n\n")[0].removesuffix(".").split()).replace("``", "`")
        name = f"[`{file.stem}`](../reference/weightings.md#{cls.__name__.lower()})"
        rows.append([name, words, "; ".join(need for need, wanted in wants.items() if wanted) or "–"])
    return table(["weighting", "what it is", "needs"], rows)


def metrics():
    """Every conflict and audit metric, with its values for two gradients of one length."""
    rows = []
    for name, known in DESCRIPTIONS.items():
        values = ["" if value is None else f"{value:g}" for value in (known.parallel, known.orthogonal, known.opposed)]
        stands_for = {"conflict/norm/": "<task>"}.get(name, "<a>~<b>") if name.endswith("/") else ""
        rows.append([f"`{name}{stands_for}`", known.words, *values])
    return table(["metric", "what it is", "parallel", "orthogonal", "opposed"], rows)


def files_of(group):
    """The files of a group's options."""
    return sorted((CONF / group).glob("[!_]*.yaml"))


def table(head, rows):
    """A table in Markdown."""
    escaped = ([re.sub(r"(?<!\\)\|", r"\|", cell) for cell in row] for row in rows)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *escaped))


class Generated(SphinxDirective):
    """The directive, with the name of one of the functions above."""

    required_arguments = 1

    def run(self):
        """The nodes of the function's Markdown."""
        text = globals()[self.arguments[0]]()
        box = nodes.container(classes=["generated", self.arguments[0]])
        self.state.nested_parse(StringList(text.splitlines(), self.arguments[0]), self.content_offset, box)
        return box.children if text.startswith("## ") else [box]  # a section may not stand in a box


def setup(app):
    """Register the directive."""
    app.add_directive("generated", Generated)
    return {"parallel_read_safe": True}
