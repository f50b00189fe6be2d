"""What each strategy promises, needs and costs, and when it fails: by its docstring, its class, and measuring."""

import inspect
import re
from functools import cache
from pathlib import Path

import torch
from omegaconf import OmegaConf

import mtl.rules
import mtl.strategies
from mtl.rules.call import RuleCall

ROOT = Path(__file__).resolve().parents[1]
DRAWS, WIDTH, NORM_RATIO, TOLERANCE = 100, 20, 100, 1e-6
HEAD = ["strategy", "promises", "smallest cosine", "needs", "ms a call", "fails for"]


def strategy_rows():
    """The cells of each strategy, in Markdown; of those that have a rule and nothing of their own the rule's."""
    times = measured_times()
    for file in sorted((ROOT / "conf" / "strategy").glob("[!_]*.yaml")):
        config = OmegaConf.load(file)
        cls, page = method_of(config), "strategies" if "_target_" in config else "rules"
        yield [
            f"[`{file.stem}`](../reference/{page}.md#{cls.__name__.lower()})", declared(cls, "Promises"),
            smallest_cosine(config) if page == "rules" else "–", needs(cls, config), times.get(cls.__name__, "–"),
            declared(cls, "Fails for"),
        ]  # fmt: skip


def method_of(config):
    """The class that a strategy's file is about: the strategy's own, or the rule's."""
    package, node = (mtl.strategies, config) if "_target_" in config else (mtl.rules, config.rule)
    return getattr(package, node["_target_"].rpartition(".")[2])


def declared(cls, what):
    """The paragraph of a docstring that begins with ``Promises:`` or ``Fails for:``."""
    found = re.search(rf"^{what}: (.*?)(?=\n\n|\Z)", inspect.getdoc(cls), re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(
            f"{cls.__name__}: docs/guide/choose.md shows the paragraph {what}: … of its docstring; it has none."
        )
    return " ".join(found[1].removesuffix(".").split()).replace("``", "`")


def needs(cls, config):
    """What a method needs beside one batch and the Gram matrix at the features, in words."""
    losses = inspect.signature(cls.forward).parameters.get("losses")
    wants = {
        f"{getattr(cls, 'draws', 1)} batches a step": getattr(cls, "draws", 1) > 1,
        "rotations (`architecture=rotograd`)": getattr(cls, "rotates", False),
        "a member of the model for each task (K times the parameters)": getattr(cls, "has_members", False),
        "K trunk backwards (`space=parameters`)": config.get("space") == "parameters",
        "the rows": getattr(cls, "needs_rows", False),
        "the losses": losses is not None and losses.default is losses.empty,
        "state for each task": getattr(cls, "per_task_state", False),
        "random draws": issubclass(cls, mtl.rules.rule.Random),
    }
    return "; ".join(words for words, wanted in wants.items() if wanted) or "–"


@cache
def measured_times():
    """Milliseconds of a call for eight tasks, from the table of the study of the rules."""
    table = (ROOT / "experiments" / "rules" / "README.md").read_text().split("## Time per call")[1].split("\n## ")[0]
    found = re.findall(r"^\| (\w+)[^|]*\|[^|]*\|[^|]*\| ([\d.]+) /", table, re.MULTILINE)
    return dict(reversed(found))  # of two settings of a rule the first


def smallest_cosine(config):
    """The smallest cosine of the direction with a task's gradient, over random gradients of two to eight tasks."""
    generator, smallest = torch.Generator().manual_seed(0), 1.0
    for draw in range(DRAWS):
        rows = torch.randn(2 + draw % 7, WIDTH, generator=generator, dtype=torch.float64)
        rows *= NORM_RATIO ** torch.rand(len(rows), 1, generator=generator, dtype=torch.float64)
        direction = direction_of(config, rows)
        cosines = rows @ direction / rows.norm(dim=1) / direction.norm()
        smallest = min(smallest, cosines.min().item())
    return "0" if abs(smallest) < TOLERANCE else f"{smallest:.2g}".replace("-", "−")


def direction_of(config, rows):
    """The direction that a fresh rule makes of rows ``[K, n]``, where all losses are one."""
    cls, names = method_of(config), [str(number) for number in range(len(rows))]
    arguments = {name: value for name, value in config.rule.items() if name not in ("_target_", "preference")}
    if "num_tasks" in inspect.signature(cls).parameters:
        arguments["num_tasks"] = len(rows)
    call, losses = RuleCall(cls(**arguments), names), dict.fromkeys(names, torch.tensor(1.0))
    if call.needs_rows:
        return call.combine([rows], rows @ rows.T, names, losses)[0][0]
    return call.weights(rows @ rows.T, names, losses) @ rows
