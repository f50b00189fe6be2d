"""The table of combinations in docs/guide/scale.md, found by trying each; run as a script, this writes it."""

import functools
import sys
import tempfile
from pathlib import Path

from torch import nn

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]  # a script has only its folder

from support.ranks import run_ranks  # noqa: E402

from mtl.config import load  # noqa: E402
from mtl.errors import ConfigError  # noqa: E402
from mtl.runs import figures  # noqa: E402
from mtl.train import train  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "scale.md"
BEGIN, END = "<!-- what works with what: tests/support/what_works.py -->\n", "<!-- end -->"
ROWS = {
    "`naive`": ["strategy=naive"],
    "`detached`": ["strategy=detached"],
    "`detached`, late weighting": ["strategy=detached", "weighting=famo"],
    "rule, `space=features`": ["strategy=mgda"],
    "rule, `space=features_sum`": ["strategy=mgda", "strategy.space=features_sum"],
    "rule, `space=parameters`": ["strategy=mgda", "strategy.space=parameters"],
    "GradDrop, TrimmedMean": ["strategy=graddrop", "strategy.space=features"],
    "MoCo, DB-MTL, ExcessMTL": ["strategy=moco", "strategy.space=parameters"],
}
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
RUN = [
    "device=cpu", "data.image_size=16", "data.batch_size=8", "+data.pairs_per_digit=1", "trainer.max_steps=2",
    "trainer.val_every=2", "trainer.limit_val_batches=1", "conflict.every=1", "tracker=jsonl",
]  # fmt: skip


def attempt(root, columns):
    """Whether each strategy runs with the options of each column; False if a ConfigError refuses them."""
    works = {}
    # Tracing is enough here: tests/engine/test_setup.py compares compiled results.
    compile_by, draw, figures.draw_run = nn.Module.compile, figures.draw_run, lambda folder: None
    nn.Module.compile = functools.partialmethod(compile_by, backend="aot_eager")
    for row, own in ROWS.items():
        for column, options in columns.items():
            folder = Path(root) / str(len(works))
            try:
                train(load([*RUN, *own, *options]), folder)
                works[row, column] = True
            except ConfigError as error:
                assert str(error).startswith(("trainer.", "strategy.")), error
                works[row, column] = False
    nn.Module.compile, figures.draw_run = compile_by, draw
    return works


def table():
    """The table, as Markdown."""
    with tempfile.TemporaryDirectory() as root:
        works = attempt(f"{root}/alone", ALONE) | run_ranks(2, attempt, f"{root}/two", TOGETHER, seconds=600)[0]
    columns = [*ALONE, *TOGETHER]
    lines = [["", *columns], ["---"] + [":-:"] * len(columns)]
    lines += [[row, *("✓" if works[row, column] else "–" for column in columns)] for row in ROWS]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{rest.split(END, 1)[1]}")
