"""The tables of combinations in docs/guide/scale.md, found by trying each; run as a script, this writes them."""

import functools
import sys
import tempfile
from pathlib import Path

from torch import nn

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]  # a script has only its folder

from support.composing import options  # noqa: E402
from support.going_on import goes_on  # noqa: E402
from support.ranks import run_ranks  # noqa: E402

from mtl.config import load  # noqa: E402
from mtl.data import office  # noqa: E402
from mtl.errors import ConfigError  # noqa: E402
from mtl.runs import figures  # noqa: E402
from mtl.train import train  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "scale.md"
BEGIN, END = "<!-- {}: tests/support/what_works.py -->\n", "<!-- end -->"
STRATEGIES = {
    "`naive`": ["strategy=naive"],
    "`detached`": ["strategy=detached"],
    "`detached`, late weighting": ["strategy=detached", "weighting=famo"],
    "rule, `space=features`": ["strategy=mgda"],
    "rule, `space=features_sum`": ["strategy=mgda", "strategy.space=features_sum"],
    "rule, `space=parameters`": ["strategy=mgda", "strategy.space=parameters"],
    "GradDrop, TrimmedMean": ["strategy=graddrop", "strategy.space=features"],
    "MoCo, DB-MTL, ExcessMTL": ["strategy=moco", "strategy.space=parameters"],
}
NEEDS = {  # what an architecture asks for
    "lora": ["backbone=vit_tiny", "backbone.name=test_vit"],
    "rotograd": ["strategy=rotograd"],
}
ARCHITECTURES = {f"`{name}`": [f"architecture={name}", *NEEDS.get(name, ())] for name in options("architecture")}
ALONE = {
    "bf16": ["trainer.precision=bf16"],
    "fp16": ["trainer.precision=fp16"],
    "compile": ["trainer.compile=true"],
    "recompute": ["trainer.grad_checkpointing=true"],
    "micro": ["trainer.accumulate_grad_batches=2"],
    "exact": ["trainer.accumulate_grad_batches=2", "trainer.accumulate=exact"],
}
TOGETHER = {
    "DDP": [],
    "FSDP trunk": ["trainer.shard=backbone"],
    "FSDP all": ["trainer.shard=all"],
    "DDP, fp16, exact, recompute, SyncBN": [
        *ALONE["fp16"], *ALONE["exact"], *ALONE["recompute"], "trainer.sync_batchnorm=true",
    ],
    "FSDP trunk, bf16, micro": ["trainer.shard=backbone", *ALONE["bf16"], *ALONE["micro"]],
}  # fmt: skip
OWN_INPUTS = "inputs of their own"
GOES_ON = "resume, missing labels"
OF_ARCHITECTURES = {
    "rule, `space=features`": ["strategy=mgda"],
    "rule, `space=parameters`": ["strategy=mgda", "strategy.space=parameters"],
    "audit": ["conflict.audit_every=1"],
    OWN_INPUTS: ["data=office"],
    GOES_ON: [],
    **{name: ALONE[name] for name in ("bf16", "fp16", "compile", "recompute", "exact")},
}
TOGETHER_OF_ARCHITECTURES = {name: TOGETHER[name] for name in ("DDP", "FSDP trunk", "FSDP all")}
TABLES = {
    "what works with what": (STRATEGIES, ALONE, TOGETHER),
    "what architectures work with": (ARCHITECTURES, OF_ARCHITECTURES, TOGETHER_OF_ARCHITECTURES),
}
RUN = [
    "device=cpu", "data.batch_size=8", "trainer.max_steps=2", "trainer.val_every=2", "trainer.limit_val_batches=1",
    "conflict.every=1", "tracker=jsonl",
]  # fmt: skip
# With 16 pixels the last maps are 1×1, where oneDNN's bf16 leaves a part of a strided convolution's gradient unwritten.
DIGITS = ["data.image_size=32", "+data.pairs_per_digit=1"]


def attempt(root, rows, columns):
    """Whether each row's choice runs with the options of each column; False if a ConfigError refuses them."""
    works = {}
    # Tracing is enough here: tests/engine/test_setup.py compares compiled results.
    compile_by, draw, figures.draw_run = nn.Module.compile, figures.draw_run, lambda folder: None
    nn.Module.compile = functools.partialmethod(compile_by, backend="aot_eager")
    for row, own in rows.items():
        for column, chosen in columns.items():
            try:
                run(Path(root) / str(len(works)), own, column, chosen)
                works[row, column] = True
            except ConfigError as error:
                assert str(error).startswith(("trainer.", "strategy.", "architecture", "backbone")), error
                works[row, column] = False
    nn.Module.compile, figures.draw_run = compile_by, draw
    return works


def run(folder, own, column, chosen):
    """Two steps of a row's choice with a column's options."""
    if chosen and chosen[0].startswith("strategy="):  # in place of the row's
        own = [text for text in own if not text.startswith("strategy=")]
    if column == GOES_ON:
        return goes_on(load([*DIGITS, *RUN, *own]), every_parameter=False)
    small = DIGITS
    if column == OWN_INPUTS:
        office.make_fixture(folder / "data", sizes=dict.fromkeys(("amazon", "dslr", "webcam"), (4, 2, 2)))
        small = [f"data.root={folder / 'data'}", "data.image_size=32"]
    return train(load([*small, *RUN, *own, *chosen]), folder / "run")


def table(rows, alone, together):
    """A table, as Markdown."""
    with tempfile.TemporaryDirectory() as root:
        works = attempt(f"{root}/alone", rows, alone)
        works |= run_ranks(2, attempt, f"{root}/two", rows, together, seconds=600)[0]
    columns = [*alone, *together]
    lines = [["", *columns], ["---"] + [":-:"] * len(columns)]
    lines += [[row, *("✓" if works[row, column] else "–" for column in columns)] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def parts_of_page(name):
    """The page before a table, the table, and the page after it."""
    before, rest = PAGE.read_text().split(BEGIN.format(name))
    return before + BEGIN.format(name), *rest.split(END, 1)


if __name__ == "__main__":
    for name in sys.argv[1:] or TABLES:
        before, _, after = parts_of_page(name)
        PAGE.write_text(before + table(*TABLES[name]) + END + after)
