"""The snippets of the guides that ask a trained model, run with a tiny one in the place of the reader's."""

import shutil
import sys
from types import SimpleNamespace

import pytest
from support.guides import blocks, commands, guide, with_run

from mtl.data.table import make_fixture


def run_snippet(code, folder):
    """Run it with its last expression printed, and return what that was."""
    *first, last = code.strip().splitlines()
    scope = {}
    exec(with_run("\n".join(first), folder), scope)
    return eval(with_run(last.partition("  # ")[0], folder), scope)


def test_of_images(trained, tmp_path, monkeypatch):
    run = trained("image_table")
    for name in ("new.png", "a.png", "b.png"):
        shutil.copy(next((run.parent / "data").rglob("*.png")), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(guide("predict"), "python")
    answers = run_snippet(code, run)
    assert len(answers) == 2 and {"class", "probability"} <= answers[0]["colour"].keys()
    assert "colour" in run_snippet(code.strip().rpartition("\n")[0], run)


def test_of_tables(trained, tmp_path, monkeypatch):
    make_fixture(tmp_path, rows=4)
    (tmp_path / "table.csv").rename(tmp_path / "new.csv")
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(guide("tables"), "python")
    assert len(run_snippet(code, trained("table"))) == 4
    assert {"basket", "amount", "again"} <= run_snippet(code.strip().rpartition("\n")[0], trained("table")).keys()


def test_of_texts(tmp_path, monkeypatch):
    """The page's own command on a table of reviews, and its question."""
    pytest.importorskip("transformers")
    from mtl.config import load
    from mtl.train import train

    rows = [
        f"the soup number {n} was {'lovely' if n % 2 else 'cold'} and the bread was warm,{n % 5 + 1},{n % 2}"
        for n in range(60)
    ]
    (tmp_path / "reviews.csv").write_text("\n".join(["review,stars,again", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    words = commands(guide("text"))[0][1]
    tiny = ["trainer.max_steps=2", "tracker=jsonl", "device=cpu", "data.length=12", "backbone.width=16"]
    train(load([*words, *tiny]), tmp_path / "run")
    answer = run_snippet(blocks(guide("text"), "python")[0].rpartition("\n#")[0], tmp_path / "run")
    assert {"class", "probability", "probabilities"} <= answer["stars"].keys()


def test_an_encoder_is_saved_as_the_page_says(monkeypatch):
    """With a recorder in the place of transformers, which would ask the hub."""
    saved = []

    class Part(str):
        from_pretrained = classmethod(lambda cls, name: cls(name))
        save_pretrained = lambda self, folder: saved.append((str(self), folder))  # noqa: E731

    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoModel=Part, AutoTokenizer=Part))
    exec(blocks(guide("text"), "python")[1], {})
    assert saved == [("distilbert-base-multilingual-cased", "encoder")] * 2
