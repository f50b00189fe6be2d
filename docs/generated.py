"""Sphinx extension: tables made from the code when the site is built, and the guides that the index does not name.

``{generated} keys`` in a page is replaced by what the function ``keys`` of this file returns, in Markdown.
"""

import inspect
import re
from functools import cache, partial
from pathlib import Path

import torch
import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

import mtl.rules
import mtl.weightings
from mtl.config import reference
from mtl.descriptions import DESCRIPTIONS
from mtl.errors import ConfigError
from mtl.rules.call import RuleCall
from mtl.rules.solvers import SolverError

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
FOLLOWING = ("heads", "losses")  # the data: an option for each, which needs no words
DRAWS, TOLERANCE = 100, 1e-6


def keys():
    """Every key with type, default and meaning; whether a resumed run may change it."""
    rows = [
        [f"`{key.name}`", key.type, f"`{key.default}`", key.meaning, "may change" if key.changeable else ""]
        for key in reference.keys(CONF)
    ]
    return table(["key", "value", "default", "meaning", "on resuming"], rows)


def groups():
    """Every group, and what it is."""
    rows = [[f"`{name}`", meaning, options_of(name)] for name, meaning in reference.groups().items()]
    return table(["group", "what it is", "options"], rows)


def options():
    """The options of every group but those that follow the data, each with the comment of its file."""
    parts = []
    for group, meaning in reference.groups().items():
        files = sorted((CONF / group).glob("[!_]*.yaml"))
        if files and group not in FOLLOWING:
            rows = [[f"`{file.stem}`", reference.meaning_of(file)] for file in files]
            parts.append(
                f"## `{group}`\n\n{meaning[0].upper()}{meaning[1:]}.\n\n" + table(["option", "what it is"], rows)
            )
    return "\n".join(parts)


def strategies():
    """What each rule promises, needs and costs, and when it fails."""
    times = measured_times()
    rows = []
    for file in strategy_files():
        config = yaml.safe_load(file.read_text())
        cls = getattr(mtl.rules, config["rule"]["_target_"].rpartition(".")[2])
        name = f"[`{file.stem}`](../reference/rules.md#{cls.__name__.lower()})"
        rows.append([
            name, declared(cls, "Promises"), worst_cosine(file), needs(cls, config), times.get(cls.__name__, "–"),
            declared(cls, "Fails for"),
        ])  # fmt: skip
    head = ["strategy", "promises", "smallest cosine", "needs", "ms a call", "fails for"]
    return table(head, rows)


def weightings():
    """What each weighting is, by the first sentence of its class, and what it needs."""
    rows = []
    for file in sorted((CONF / "weighting").glob("*.yaml")):
        cls = getattr(mtl.weightings, yaml.safe_load(file.read_text())["_target_"].rpartition(".")[2])
        wants = {
            "all losses of a step before the first backward of the trunk": cls.needs_all_losses,
            "the Gram matrix in every step": cls.needs_gram,
            "one more forward pass in every step": cls.needs_losses_after_update,
        }
        name = f"[`{file.stem}`](../reference/weightings.md#{cls.__name__.lower()})"
        rows.append([name, first_sentence(cls), "; ".join(k for k, wanted in wants.items() if wanted)])
    return table(["weighting", "what it is", "needs"], rows)


def metrics():
    """Every conflict and audit metric, with its values for two gradients of one length."""
    rows = []
    for name, known in DESCRIPTIONS.items():
        values = ["" if value is None else f"{value:g}" for value in (known.parallel, known.orthogonal, known.opposed)]
        stands_for = {"conflict/norm/": "<task>"}.get(name, "<a>~<b>") if name.endswith("/") else ""
        rows.append([f"`{name}{stands_for}`", known.words, *values])
    return table(["metric", "what it is", "parallel", "orthogonal", "opposed"], rows)


def strategy_files():
    """The files of the strategies with a rule of ours."""
    return [file for file in sorted((CONF / "strategy").glob("[!_]*.yaml")) if "rule:" in file.read_text()]


def declared(cls, what):
    """The paragraph of a rule's docstring that begins with ``Promises:`` or ``Fails for:``."""
    found = re.search(rf"^{what}: (.*?)(?=\n\n|\Z)", inspect.getdoc(cls), re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(
            f"{cls.__name__} has no paragraph {what}: … in its docstring, which docs/guide/choose.md shows."
        )
    return markdown(found[1].removesuffix("."))


def needs(cls, config):
    """What a rule needs beside the Gram matrix, in words."""
    wants = {
        "K trunk backwards (`space=parameters`)": config.get("space") == "parameters",
        "the rows": cls.needs_rows,
        "the losses": "losses" in required_arguments(cls),
        "state for each task": cls.per_task_state,
        "random draws": issubclass(cls, mtl.rules.rule.Random),
    }
    return "; ".join(words for words, wanted in wants.items() if wanted) or "–"


def required_arguments(cls):
    """The arguments of ``forward`` without a default."""
    return [name for name, p in inspect.signature(cls.forward).parameters.items() if p.default is p.empty]


@cache
def measured_times():
    """Milliseconds of a call for eight tasks, from the table of the study of the rules."""
    lines = (ROOT / "experiments" / "rules" / "README.md").read_text().split("## Time per call")[1].split("\n## ")[0]
    found = re.findall(r"^\| (\w+)[^|]*\|[^|]*\|[^|]*\| ([\d.]+) /", lines, re.MULTILINE)
    return dict(reversed(found))  # of two settings of a rule the first


def worst_cosine(file):
    """The smallest cosine of the direction with a task's gradient, over random gradients of two to eight tasks."""
    config = yaml.safe_load(file.read_text())
    generator = torch.Generator().manual_seed(0)
    worst, failed = 1.0, 0
    for draw in range(DRAWS):
        count = 2 + draw % 7
        rows = torch.randn(count, 20, generator=generator, dtype=torch.float64)
        rows *= 100 ** torch.rand(count, 1, generator=generator, dtype=torch.float64)
        losses = torch.rand(count, generator=generator, dtype=torch.float64) + 0.1
        try:
            direction = direction_of(config["rule"], rows, losses)
        except SolverError:
            failed += 1
            continue
        cosines = rows @ direction / rows.norm(dim=1) / direction.norm().clamp(min=1e-300)
        worst = min(worst, cosines.min().item())
    if failed:
        raise ConfigError(f"{file.stem}: {failed} of {DRAWS} draws were not solved.")
    return "0" if abs(worst) < TOLERANCE else f"{worst:.2g}".replace("-", "−")


def direction_of(node, rows, losses):
    """The direction that a fresh rule makes of rows ``[K, n]``."""
    cls = getattr(mtl.rules, node["_target_"].rpartition(".")[2])
    arguments = {name: value for name, value in node.items() if name not in ("_target_", "preference")}
    arguments = {name: float(value) if name == "epsilon" else value for name, value in arguments.items()}
    if "num_tasks" in inspect.signature(cls).parameters:
        arguments["num_tasks"] = len(rows)
    names = [str(number) for number in range(len(rows))]
    call = RuleCall(cls(**arguments), names)
    by_task = dict(zip(names, losses, strict=True))
    if call.needs_rows:
        return call.combine([rows], rows @ rows.T, names, by_task)[0][0]
    return call.weights(rows @ rows.T, names, by_task) @ rows


def options_of(group):
    """The options of a group, in a line."""
    return " ".join(f"`{file.stem}`" for file in sorted((CONF / group).glob("[!_]*.yaml"))) or "–"


def first_sentence(cls):
    """The first paragraph of a class's docstring, without what it goes on to define."""
    return markdown(inspect.getdoc(cls).partition("\n\n")[0].removesuffix("."))


def markdown(text):
    """A docstring's words in a cell of a table."""
    return " ".join(text.split()).replace("``", "`").replace("|", r"\|")


def table(head, rows):
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') if chr(92) not in cell else cell for cell in line)} |\n"
        for line in lines
    )


class Generated(SphinxDirective):
    """The directive, with the name of one of the functions above."""

    required_arguments = 1

    def run(self):
        """The nodes of the function's Markdown."""
        text = globals()[self.arguments[0]]()
        box = nodes.container(classes=["generated", self.arguments[0]])
        self.state.nested_parse(StringList(text.splitlines(), self.arguments[0]), self.content_offset, box)
        return box.children if "## " in text else [box]


def prepare(app, name, text):
    """Put every guide that no list of the index names into its last list; make links to the repository work."""
    text[0] = re.sub(r"\[([^]]+)\]\((\.\./\.\./[^)#]+)\)", partial(link_out, Path(app.srcdir) / "guide"), text[0])
    text[0] = re.sub(r"\((\.\./)?tutorial/(\w+)\.py\)", r"(/_tutorial/\2.rst)", text[0])
    if name == "index":
        guides = {f"guide/{page.stem}" for page in (Path(app.srcdir) / "guide").glob("*.md")}
        others = sorted(guides - set(re.findall(r"^guide/\w+$", text[0], re.MULTILINE)))
        text[0] = text[0].replace("guide/security\n", "\n".join(["guide/security", *others]) + "\n")


def link_out(here, link):
    """A link to a file outside docs/, which is a download on the site; of a folder or an image what stands there."""
    words, target = link.groups()
    if (here / target).is_dir():
        return words
    return f"[{words}](path:{target})" if target.endswith(".md") else link[0]


def setup(app):
    """Register the directive, and what is done to the index."""
    app.add_directive("generated", Generated)
    app.connect("source-read", prepare)
    return {"parallel_read_safe": True}
