"""The tables that are made when the site is built: complete, and right where they say a number."""

import re
import sys

import pytest
import torch
from omegaconf import OmegaConf
from support.composing import option, options
from support.guides import DOCS, guide

import mtl
from mtl.config import CONF, reference

pytest.importorskip("sphinx")
sys.path.insert(0, str(DOCS))

import generated
import links
import mathml
import strategy_table

sys.path.remove(str(DOCS))


def cells(table):
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()[2:]]


@pytest.fixture(scope="module")
def strategies():
    return {re.match(r"\[`(\w+)`\]", row[0])[1]: row for row in cells(generated.strategies())}


def test_every_rule_says_what_it_promises_and_where_it_fails(strategies):
    assert set(strategies) == set(options("strategy"))
    assert all(row[1] and row[2] and row[5] for row in strategies.values())


def test_the_smallest_cosine_is_that_of_the_definition(strategies):
    """Rules that promise to hurt no task are at or above zero, the sum is as bad as it can be computed here."""
    for name in ("upgrad", "dualproj", "mgda", "nash_mtl", "fairgrad", "config"):
        assert not strategies[name][2].startswith("−"), name
    generator, worst = torch.Generator().manual_seed(0), 1.0
    for draw in range(strategy_table.DRAWS):
        count = 2 + draw % 7
        rows = torch.randn(count, 20, generator=generator, dtype=torch.float64)
        rows *= 100 ** torch.rand(count, 1, generator=generator, dtype=torch.float64)
        worst = min(worst, *(torch.cosine_similarity(row, rows.sum(0), dim=0).item() for row in rows))
    assert strategies["sum"][2] == f"{worst:.2g}".replace("-", "−") and worst < -0.1


def test_imtl_g_can_hurt_every_task_as_its_docstring_says():
    rows = torch.nn.functional.normalize(torch.tensor([[1, 0, 0], [0, 1, 0], [0.7, 0.7, 0.14]]).double())
    rows[2] *= 0.1
    direction = mtl.rules.IMTLG()(rows @ rows.T) @ rows
    assert (rows @ direction < 0).all()


def test_the_times_are_those_of_the_study():
    times = strategy_table.measured_times()
    assert times["MGDA"] == "0.080" and times["FairGrad"] == "0.131" and len(times) >= 20


def test_what_a_rule_needs_is_what_it_declares(strategies):
    for name, row in strategies.items():
        cls = strategy_table.method_of(OmegaConf.load(CONF / "strategy" / f"{name}.yaml"))
        assert ("the rows" in row[3]) == getattr(cls, "needs_rows", False)
        assert ("state for each task" in row[3]) == getattr(cls, "per_task_state", False)


@pytest.mark.parametrize("group", ["strategy", "weighting", "architecture"])
def test_every_method_is_in_the_reference(group):
    for name in options(group):
        config = option(group, name)
        for node in (config, config.get("rule")):
            if node is not None:
                package, _, method = node["_target_"].rpartition(".")
                text = (DOCS / "reference" / f"{package.removeprefix('mtl.')}.md").read_text()
                assert f"autoclass:: {package}.{method}\n" in text and f"## {method}\n" in text, method


def test_every_metric_and_every_key_has_a_row():
    assert set(generated.DESCRIPTIONS) <= {re.sub(r"<.*", "", row[0].strip("`")) for row in cells(generated.metrics())}
    assert [row[0].strip("`") for row in cells(generated.keys())] == [key.name for key in reference.keys(CONF)]


def test_every_option_has_words():
    """Also those of the reader's: a file without a comment would have an empty cell."""
    text = generated.options()
    for group in reference.groups():
        for name in options(group) if group not in generated.FOLLOWING else ():
            (words,) = re.findall(
                rf"^\| `{name}` \| (.*) \|$", text.split(f"## `{group}`")[1].split("\n## ")[0], re.MULTILINE
            )
            assert len(words) > 8, f"{group}/{name}.yaml begins with no comment"


def test_every_guide_is_in_a_list_of_the_index():
    text = [(DOCS / "index.md").read_text()]
    app = type("App", (), {"srcdir": DOCS})
    links.prepare(app, "index", text)
    named = re.findall(r"^guide/(\w+)$", text[0], re.MULTILINE)
    assert sorted(named) == sorted(page.stem for page in (DOCS / "guide").glob("*.md"))


def test_links_out_of_the_site_are_downloads():
    text = ["[a](../../examples/README.md) [b](../../examples/plain_pytorch.py) [`c`](../../mtl/rules) [d](choose.md)"]
    links.prepare(type("App", (), {"srcdir": DOCS}), "guide/x", text)
    assert text[0] == "[a](path:../../examples/README.md) [b](../../examples/plain_pytorch.py) `c` [d](choose.md)"


def test_maths_becomes_mathml_and_an_unknown_macro_a_warning(caplog):
    class Node:
        source = line = None

        def __init__(self, text):
            self.text = text

        def astext(self):
            return self.text

    assert "<msub>" in mathml.translated(Node("g_i"), as_block=False)
    assert "<math" not in mathml.translated(Node(r"\nothing x"), as_block=False)
    assert guide("balance").count("$") >= 2
