"""Columns of free text in a table: from one command to a prediction without the table."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from support.exactness import assert_same, left_by

import mtl
from mtl.config import check, load
from mtl.config.build import build
from mtl.config.table_heads import take_targets
from mtl.data.table import Table
from mtl.errors import ConfigError
from mtl.evaluate import evaluate_checkpoint
from mtl.gradients.cut import Cut
from mtl.system.signals import Preempted
from mtl.train import train

GOOD, BAD = ["great", "lovely", "fine food", "warm welcome"], ["awful", "rude staff", "cold food", "long wait"]


def reviews(rows=60):
    """Stars are how many of four words are good; the title and the price say something of them, too."""
    rng = random.Random(0)
    table = []
    for i in range(rows):
        stars = i % 3 * 2
        words = rng.choices(GOOD, k=stars) + rng.choices(BAD, k=4 - stars)
        table.append({
            "review": f"On day {i} it was " + ", ".join(rng.sample(words, 4)), "stars": stars, "again": int(stars > 2),
            "title": f"visit {i} was {words[0]}", "price": 10 + stars + rng.random(),
            "city": rng.choice(["Bonn", "Ulm"]),
        })  # fmt: skip
    return pd.DataFrame(table)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("reviews")
    reviews()[["review", "stars", "again"]].to_csv(where / "reviews.csv", index=False)
    reviews()[["review", "title", "price", "city", "stars"]].to_csv(where / "mixed.csv", index=False)
    return where


def settings(folder, *overrides, file="reviews.csv", targets="[stars,again]", backbone="text"):
    return [
        "data=table", f"data.root={folder}", f"data.file={file}", f"data.targets={targets}", "data.length=24",
        "data.batch_size=8", f"backbone={backbone}", "backbone.width=16", "tracker=jsonl", "device=cpu",
        "trainer.max_steps=4", "trainer.val_every=2", "trainer.log_every=1", *overrides,
    ]  # fmt: skip


def composed(*arguments, **named):
    cfg = load(settings(*arguments, **named))
    take_targets(cfg)
    return cfg


def test_one_command_from_a_file_of_texts_to_an_answer(folder, tmp_path):
    options = settings(folder, "trainer.checkpoint_every=1")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(load(options), whole)
    answers = iter([False, True])
    with pytest.raises(Preempted):
        train(load(options), parts, lambda: next(answers))
    with pytest.raises(AssertionError, match="not the same"):
        assert_same(left_by(whole), left_by(parts))
    train(load([*options, f"resume={parts}"]), parts)
    assert_same(left_by(whole), left_by(parts))
    found = evaluate_checkpoint(whole / "checkpoints" / "best.pt", "test")
    row = left_by(whole)[1][-1]
    assert found == {name: row[name] for name in found}
    data = build(composed(folder))[0].data
    predictor = mtl.load(whole, device="cpu")
    text = reviews()["review"][7]
    said, alone = predictor(text), predictor({"review": text})
    assert said == alone and set(said) == {"stars", "again"} and set(said["stars"]["probabilities"]) == {0, 2, 4}
    assert said != predictor("something else altogether")
    assert_same(predictor.preprocess(text), data.preprocess(text))
    rows = [i for i in range(60) if data.test.path(0).endswith(f"row {i + 2}")]
    assert_same(predictor.preprocess(reviews()["review"][rows[0]]), data.test[0][0])
    with pytest.raises(ValueError, match="a row must be a dict of review, but it is a int"):
        predictor(3)


def test_the_splits_give_what_the_preprocess_gives(folder):
    table = Table(str(folder), ["stars"], "mixed.csv", length=24, reads_text=True)
    assert table.input_info.keys() == {"numbers", "categories", "vocabulary", "context"}
    assert table.preprocess.texts == ["review", "title"]
    rows = table.preprocess.batch(reviews())
    row = int(table.val.path(1).rpartition(" ")[2]) - 2
    inputs, _ = table.val[1]
    assert inputs.keys() == {"numbers", "categories", "text"} and inputs["text"]["segments"].sum() > 3
    assert_same(inputs, {name: own[row] for name, own in rows.items() if name != "text"}
                | {"text": {name: own[row] for name, own in rows["text"].items()}})  # fmt: skip
    empty = table.preprocess({**reviews().iloc[0].to_dict(), "title": None, "review": np.nan})["text"]
    assert int(empty["mask"].sum()) == 3, "its special tokens"


def test_text_and_numbers_both_count_where_they_are_joined(folder):
    parts, state = build(composed(folder, file="mixed.csv", targets="[stars]", backbone="table_text"))
    model = state.model.eval()
    inputs, _ = parts.data.val.batch([0, 1], 0)
    right = model(inputs)["stars"]
    assert model.backbone(inputs).shape == (2, 128)
    for name in ("numbers", "categories", "text"):
        other = parts.data.val.batch([2, 3], 0)[0][name]
        changed = {**inputs, name: other if name != "categories" else 1 - inputs["categories"]}
        assert not torch.allclose(model(changed)["stars"], right), name


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy=mgda"],
        ["strategy=mgda", "architecture=mmoe"],
        ["architecture=cgc"],
        ["trainer.accumulate_grad_batches=2", "trainer.accumulate=exact"],
        ["+head@heads.stars=attention_pool", "heads.stars.out_features=3", "+head@heads.again=attention_pool",
         "heads.again.out_features=2", "+losses.stars._target_=torch.nn.CrossEntropyLoss"],
    ],
    ids=["mgda", "mmoe", "cgc", "pieces", "tokens"],
)  # fmt: skip
def test_it_takes_a_step(folder, overrides):
    parts, state = build(composed(folder, *overrides))
    inputs, targets = parts.data.train.batch(list(range(8)), 0)
    result = state.strategy.step(state.model, state.tasks, inputs, targets, measure=True)
    assert all(torch.isfinite(loss) for loss in result.losses.values()) and result.gram.shape == (2, 2)
    assert all(p.grad is not None for p in state.model.parameters())
    features = state.model.backbone(inputs)
    assert all(leaf.is_floating_point() for leaf in Cut(features).leaves)


def test_heads_and_losses_follow_the_targets_and_what_is_chosen_stays(folder):
    cfg = composed(folder, "~data.targets", "+data.targets={stars: stars, dear: price}", file="mixed.csv")
    assert {name: own["out_features"] for name, own in cfg.heads.items()} == {"stars": 3, "dear": 1}
    assert cfg.losses.dear._target_ == "mtl.losses.MaskedL2"
    chosen = composed(folder, "+head@heads.stars=mlp", "heads.stars.out_features=3")
    assert chosen.heads.stars._target_ == "mtl.heads.MLP" and set(chosen.heads) == {"stars", "again"}
    every = composed(folder, "head@heads._default_=mlp", "heads._default_.hidden_features=7")
    assert {(own._target_, own.hidden_features) for own in every.heads.values()} == {("mtl.heads.MLP", 7)}
    for same in (["data=digits"], ["data=table", "data.targets=[a]"], ["data=table"], ["heads=table"]):
        cfg, before = load(same), load(same)
        take_targets(cfg)
        assert cfg == before
    with pytest.raises(ConfigError, match=r"^data: targets=star is no column of .*did you mean stars"):
        composed(folder, targets="star")
    with pytest.raises(ConfigError, match=r"^heads._default_ is the head of each of data.targets, and data names none"):
        check(load(["heads=table"]))


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (dict(kinds={"review": "text"}), "kinds.review=text needs a backbone that reads text: table_text or text"),
        (dict(inputs=["price", "city"], reads_text=True), "the backbone reads text, and no input of .* is free text"),
        (dict(reads_text=True, cache="here"), "cache=here is for numbers, and the backbone reads text"),
        (dict(reads_text=True, kinds={"city": "text"}), "review, title, city are columns of text, and two can be read"),
        (dict(reads_text=True, tokenizer="no"), "tokenizer=no: there is no .*/no; give a tokenizer.json"),
    ],
    ids=["tabular", "none", "cache", "three", "tokenizer"],
)
def test_a_mistake_is_one_sentence(folder, named, words):
    with pytest.raises(ValueError, match=words) as caught:
        Table(str(folder), ["stars"], "mixed.csv", **named)
    assert "\n" not in str(caught.value)


def test_free_text_is_left_out_where_it_is_not_read(folder, caplog):
    table = Table(str(folder), ["stars"], "mixed.csv")
    assert table.preprocess.columns == ["price", "city"] and "vocabulary" not in table.input_info
    assert (
        "review is left out of the inputs: it is free text, which backbone=table_text and backbone=text" in caplog.text
    )


def test_experts_say_once_what_each_of_them_would_say(folder, caplog):
    build(composed(folder, "architecture=mmoe"))
    assert len([text for text in caplog.messages if "begins with random weights" in text]) == 1
    caplog.clear()
    build(composed(folder))
    assert len([text for text in caplog.messages if "begins with random weights" in text]) == 1, "each run says so"
