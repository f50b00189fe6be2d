"""mtl-eval, mtl-predict, mtl.load and mtl-export at a preference, against weights that are mixed by hand."""

import json
import re
import sys

import pandas as pd
import pytest
import torch

import mtl
from mtl import evaluate, export, predict
from mtl.evaluate import evaluate_checkpoint
from mtl.runs import checkpoint

SHARES = {"basket": 0.2, "amount": 0.5, "again": 0.3}
IN_ORDER = "preference=[2,5,3]"
BY_NAME = "preference={again:.3,basket:.2,amount:.5}"


@pytest.fixture
def folder(trained):
    return trained("table", "strategy=pareto_manifold")


@pytest.fixture
def by_hand(folder):
    """A checkpoint of a plain model, beside the run's own, whose weights are the members' mixed by hand."""
    content = checkpoint.load(folder / "checkpoints" / "best.pt")
    content["config"]["strategy"] = {"_target_": "mtl.strategies.Detached", "token_chunks": 1}
    state = {}
    for name, value in content["model"].items():
        member = re.fullmatch(r"(.*)parametrizations\.(\w+)\.original(\d)", name)
        key, share = (name, 1) if member is None else (member[1] + member[2], list(SHARES.values())[int(member[3])])
        state[key] = state.get(key, 0) + share * value
    file = folder / "checkpoints" / "by_hand.pt"
    checkpoint.save(file, {**content, "model": state})
    yield file
    file.unlink()
    file.with_name("by_hand.pt.sha256").unlink(missing_ok=True)


def call(monkeypatch, command, *arguments):
    monkeypatch.setattr(sys, "argv", ["a command", *map(str, arguments)])
    command.main()


def test_mtl_eval_at_a_preference_measures_the_model_mixed_by_hand(folder, by_hand, caplog):
    expected = evaluate_checkpoint(by_hand, "test")
    assert not caplog.records
    for given in (IN_ORDER, BY_NAME):
        assert evaluate_checkpoint(folder, "test", overrides=[given]) == pytest.approx(expected, rel=1e-5)
    assert not caplog.records
    equal = evaluate_checkpoint(folder, "test")
    assert equal["loss/total"] != pytest.approx(expected["loss/total"], rel=1e-5)
    assert (
        "the model has a front, and no preference is given: the shares of basket, amount, again are equal"
        in caplog.text
    )


def test_mtl_load_and_mtl_predict_answer_as_the_model_mixed_by_hand(folder, by_hand, monkeypatch, tmp_path, capsys):
    rows = pd.read_csv(folder.parent / "data" / "table.csv").head(4)
    rows.to_csv(tmp_path / "new.csv")
    batch = mtl.load(by_hand, device="cpu").collate(rows)
    expected = mtl.load(by_hand, device="cpu").scores(batch)
    predictor = mtl.load(folder, device="cpu", preference=SHARES)
    assert predictor.preference == pytest.approx(SHARES)
    for task, scores in predictor.scores(batch).items():
        assert scores == pytest.approx(expected[task], rel=1e-4, abs=1e-5)
    predictor.preference = [0, 0, 3]
    assert predictor.preference == {"basket": 0, "amount": 0, "again": 1}
    assert predictor.scores(batch)["amount"] != pytest.approx(expected["amount"], rel=1e-4, abs=1e-5)
    outputs = []
    for arguments in ([by_hand], [folder, "--preference", "again=3", "basket=2", "amount=5"]):
        call(monkeypatch, predict, arguments[0], tmp_path / "new.csv", "--device", "cpu", *arguments[1:])
        outputs.append([json.loads(line)["amount"] for line in capsys.readouterr().out.splitlines()])
    assert outputs[1] == pytest.approx(outputs[0], rel=1e-4) and len(outputs[0]) == 4


def test_an_exported_program_has_the_mixture_alone(folder, by_hand, tmp_path):
    files = {"members": tmp_path / "members.pt2", "mixed": tmp_path / "mixed.pt2"}
    given = [folder, "--preference", "2", "5", "3"], [by_hand]
    for file, arguments in zip(files.values(), given, strict=True):
        words = [*map(str, arguments), "--format", "pt2", "--out", str(file)]
        export.export(export._parser().parse_args(words))
    extra = {"metadata.json": ""}
    programs = [torch.export.load(file, extra_files=extra).module() for file in files.values()]
    batch = mtl.load(by_hand, device="cpu").collate(pd.read_csv(folder.parent / "data" / "table.csv").head(3))
    answers = [program(batch["numbers"], batch["categories"]) for program in programs]
    for own, mixed in zip(*answers, strict=True):
        torch.testing.assert_close(own, mixed, rtol=1e-4, atol=1e-5)
    sizes = [sum(p.numel() for p in program.parameters()) for program in programs]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("[1,2]", "preference has 2 numbers, but there are 3 tasks: basket, amount, again."),
        ("[1,-2,0]", "preference.amount=-2 must be a finite number, 0 or more."),
        ("[0,0,0]", "preference=[0, 0, 0] must be above 0 for one task at least."),
        ("{basket:1,amont:1,again:1}", "preference.amont names no task; did you mean amount."),
        ("{basket:1,amount:1}", "preference lacks again; it needs a number for each of basket, amount, again."),
        ("high", "preference=high must be a number for each of basket, amount, again, by name or in order."),
        ("[1,inf,1]", "preference.amount=inf must be a finite number, 0 or more."),
    ],
    ids=["count", "negative", "zeros", "unknown", "missing", "word", "infinite"],
)
def test_a_wrong_preference_is_one_sentence_before_any_work(folder, monkeypatch, given, words):
    monkeypatch.setattr("mtl.config.build.build_parts", None)
    monkeypatch.setattr(sys, "argv", ["mtl-eval", str(folder), f"preference={given}"])
    with pytest.raises(SystemExit) as caught:
        evaluate.main()
    assert str(caught.value) == f"mtl-eval: {words}"


def test_a_model_without_members_and_words_that_are_no_preference(trained, folder, by_hand, tmp_path, monkeypatch):
    (tmp_path / "new.csv").write_text("x\n")
    refusal = "the model has one set of weights for all preferences; one of strategy=pareto_manifold has a choice"
    with pytest.raises(ValueError, match=refusal):
        evaluate_checkpoint(by_hand, "test", overrides=[IN_ORDER])
    plain = mtl.load(by_hand, device="cpu")
    assert plain.preference is None
    with pytest.raises(ValueError, match="has no members"):
        plain.preference = [1, 1, 1]
    for words in (["basket"], ["basket=1", "2", "3"], ["basket=1", "basket=2"], ["=1"]):
        monkeypatch.setattr(
            sys, "argv", ["mtl-predict", str(folder), str(tmp_path / "new.csv"), "--preference", *words]
        )
        with pytest.raises(SystemExit, match=r"^mtl-predict: .*preference"):
            predict.main()
    given = export._parser().parse_args([str(folder), "--format", "safetensors", "--preference", "1", "1", "1"])
    with pytest.raises(ValueError, match=r"^--preference: --format safetensors keeps every member; mtl\.load takes"):
        export._check(given)
