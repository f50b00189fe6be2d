"""PAWS-X: pairs of sentences of each language's own, from the files to a prediction without them."""

import shutil

import pytest
import torch
from support.exactness import assert_same, left_by
from torch import nn

import mtl
from mtl.architectures.multi_input import Concatenated, own_samples
from mtl.config import load
from mtl.config.build import build
from mtl.data.paws_x import PawsX, make_fixture
from mtl.evaluate import evaluate_checkpoint
from mtl.system.signals import Preempted
from mtl.train import train

LANGUAGES = ["en", "zh", "de", "es"]
HEADER = "id\tsentence1\tsentence2\tlabel\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paws_x")
    make_fixture(folder)
    return folder


def settings(root, *overrides):
    return [
        "data=paws_x", f"data.root={root}", "data.length=24", "data.batch_size=4", "tracker=jsonl", "device=cpu",
        "backbone.width=16", "trainer.max_steps=4", "trainer.val_every=2", "trainer.log_every=1", *overrides,
    ]  # fmt: skip


def test_every_language_has_its_own_pairs_and_labels(root):
    data = PawsX(str(root), LANGUAGES, length=24)
    inputs, targets = data.test.batch([1, 4], epoch=0)
    assert list(inputs) == list(targets) == LANGUAGES
    assert len(data.train) == 24 and len(data.val) == len(data.test) == 8
    for language in LANGUAGES:
        rows = (root / language / "test_2k.tsv").read_text().splitlines()
        for place, row in enumerate((rows[2], rows[5])):
            _, first, second, label = row.split("\t")
            assert targets[language][place] == int(label)
            assert_same({name: own[place] for name, own in inputs[language].items()}, data.preprocess((first, second)))
    assert (root / "en" / "train.tsv").is_file() and (root / "de" / "translated_train.tsv").is_file()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("de/dev_2k.tsv", None, r"lacks de/dev_2k.tsv \(pairs of sentences\): the folder is x-final of"),
        ("de/dev_2k.tsv", "a\tb\n1\t2\n", "dev_2k.tsv begins with 'a\tb'; its first line must be id, sentence1"),
        ("en/train.tsv", HEADER + "1\ta\t0\n", "train.tsv, row 2, has 3 columns; it must have id, sentence1"),
        ("es/test_2k.tsv", HEADER, "test_2k.tsv has no pair of sentences"),
    ],
    ids=["missing", "header", "columns", "empty"],
)
def test_what_is_wrong_with_a_file_is_said_with_its_name(tmp_path, name, content, words):
    make_fixture(tmp_path)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=words):
        PawsX(str(tmp_path), LANGUAGES, length=24)


def test_gaps_are_counted_and_a_strange_label_is_missing(tmp_path, caplog):
    make_fixture(tmp_path)
    rows = '1\tNS\tb\t0\n2\tc\t\t1\n3\td d\te "e\t2\n4\tf\tg\t1\n'
    (tmp_path / "zh" / "dev_2k.tsv").write_text(HEADER + rows)
    data = PawsX(str(tmp_path), LANGUAGES, length=24)
    assert "2 of 4 pairs lack a sentence" in caplog.text and "1 of 4 labels are neither 0 nor 1" in caplog.text
    assert data.val.batch([0, 1, 2, 3], 0)[1]["zh"].tolist() == [0, 1, -100, 1]


def test_it_resumes_to_the_last_bit_is_measured_again_and_predicts_without_its_files(root, tmp_path):
    here, whole, parts = shutil.copytree(root, tmp_path / "data"), tmp_path / "whole", tmp_path / "parts"
    options = settings(here, "trainer.checkpoint_every=1")
    train(load(options), whole)
    answers = iter([False, False, True])
    with pytest.raises(Preempted):
        train(load(options), parts, lambda: next(answers))
    with pytest.raises(AssertionError, match="not the same"):
        assert_same(left_by(whole), left_by(parts))
    train(load([*options, f"resume={parts}"]), parts)
    assert_same(left_by(whole), left_by(parts))
    found = evaluate_checkpoint(whole / "checkpoints" / "best.pt", "test")
    assert {row: found[row] for row in found} == {row: left_by(whole)[1][-1][row] for row in found}
    pair = ("en1 en2 en3", "en2 en3 en1")
    tensors = PawsX(str(here), LANGUAGES, length=24).preprocess(pair)
    shutil.rmtree(here)
    predictor = mtl.load(whole, device="cpu")
    assert_same(predictor.preprocess(pair), tensors)
    rows = [row.split("\t") for row in (root / "en" / "test_2k.tsv").read_text().splitlines()[1:]]
    said = [predictor({"sentence1": first, "sentence2": second})["en"] for _, first, second, _ in rows]
    right = [own["class"] == ("different", "paraphrase")[int(row[3])] for own, row in zip(said, rows, strict=True)]
    assert sum(right) / len(right) == pytest.approx(found["en/accuracy"])
    losses = [-torch.tensor(own["probabilities"]["paraphrase" if row[3] == "1" else "different"]).log().item()
              for own, row in zip(said, rows, strict=True)]  # fmt: skip
    assert sum(losses) / len(losses) == pytest.approx(found["loss/en"], rel=1e-5)
    with pytest.raises(ValueError, match="a row must have sentence1 and sentence2"):
        predictor({"sentence1": "a"})


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=mgda", "strategy.space=parameters"],
        ["strategy=pcgrad", "strategy.space=features_sum"],
        ["architecture=mmoe", "architecture.from_stage=1"],
        [f"head@heads.{language}=attention_pool" for language in LANGUAGES],
        ["trainer.precision=bf16", "backbone.pool=cls"],
    ],
    ids=["parameters", "sums", "mmoe", "attention_pool", "bf16"],
)
def test_it_takes_a_step(root, overrides):
    parts, state = build(load(settings(root, *overrides)))
    inputs, targets = parts.data.train.batch([0, 1, 2, 3], 0)
    result = state.strategy.step(state.model, state.tasks, inputs, targets, measure=True)
    assert all(torch.isfinite(loss) for loss in result.losses.values()) and result.gram.shape == (4, 4)
    assert all(p.grad is not None for p in state.model.parameters())


# ------------------------------------------------------------------------------------- inputs of several tasks


class Lengths(nn.Module):
    """The sum of each text's tokens, and what it was given."""

    def forward(self, inputs):
        self.given = inputs
        return (inputs["tokens"] * inputs["mask"]).sum(1)


def test_texts_of_several_lengths_are_padded_to_one():
    inputs = {
        "a": {"tokens": torch.tensor([[3, 4, 5]]), "mask": torch.tensor([[True, True, False]])},
        "b": {"tokens": torch.tensor([[6], [7]]), "mask": torch.tensor([[True], [True]])},
    }
    trunk = Lengths()
    features = Concatenated(trunk, ["a", "b"])(inputs)
    assert trunk.given["tokens"].tolist() == [[3, 4, 5], [6, 0, 0], [7, 0, 0]]
    assert trunk.given["mask"].tolist() == [[True, True, False], [True, False, False], [True, False, False]]
    assert own_samples("a", features).tolist() == [7] and own_samples("b", features).tolist() == [6, 7]


def test_nested_inputs_are_concatenated_part_by_part_and_images_are_not_padded():
    nested = {t: {"x": torch.full((n, 2), float(n)), "text": {"tokens": torch.ones(n, n), "mask": torch.ones(n, n)}}
              for t, n in (("a", 1), ("b", 3))}  # fmt: skip
    trunk = nn.Identity()
    features, bounds = Concatenated(trunk, ["a", "b"])(nested)
    assert features["x"].tolist() == [[1, 1], [3, 3], [3, 3], [3, 3]] and bounds == {"a": (0, 1), "b": (1, 4)}
    assert features["text"]["mask"][0].tolist() == [1, 0, 0]
    with pytest.raises(RuntimeError):
        Concatenated(trunk, ["a", "b"])({"a": torch.zeros(1, 3, 4, 4), "b": torch.zeros(1, 3, 5, 4)})


@pytest.mark.slow
def test_the_recipe_runs_on_the_tiny_files(root, tmp_path):
    overrides = ["+experiment=paws_x", "backbone.path=null", "trainer.max_epochs=1", "trainer.max_steps=null"]
    train(load([*settings(root, *overrides), "backbone.width=128", "trainer.val_every=null"]), tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").exists()


def test_the_recipe_is_libmtls(root):
    parts, state = build(load([
        "+experiment=paws_x", f"data.root={root}", "backbone.path=null", "device=cpu", "data.length=24",
        "backbone.width=16", "tracker=jsonl",
    ]))  # fmt: skip
    dropout, linear = state.model.heads["zh"].head
    assert dropout.p == 0.1 and (linear.in_features, linear.out_features) == (16, 2)
    assert state.model.backbone.backbone.read.pool == "pooler"
    (group, *_) = state.optimizer.param_groups
    assert (type(state.optimizer), group["lr"], group["eps"], group["weight_decay"]) == (
        torch.optim.AdamW,
        2e-5,
        1e-8,
        0,
    )
    assert (parts.data.batch_size, parts.data.targets) == (32, ("en", "zh", "de", "es"))
