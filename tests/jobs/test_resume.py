"""A run that was stopped and resumed equals one that was never stopped: whole checkpoints, compared bit for bit."""

import json
import shutil
from itertools import count
from pathlib import Path

import pytest
from support import composing
from support.exactness import assert_same, left_by, same

from mtl.config import load
from mtl.config.redact import redacted
from mtl.errors import ConfigError
from mtl.jobs.overrides import expand_resume, flags_first, save_config
from mtl.jobs.resume import changed_places, is_finished, newest_run, restore
from mtl.report.runs import read_run
from mtl.runs import checkpoint
from mtl.runs.files import read_metrics
from mtl.system.signals import Preempted
from mtl.train import train

RESTLESS = [
    "~backbone", "+backbone._target_=support.restless.Backbone", "data._target_=support.restless.AugmentedDigits",
    "data.image_size=8",
    "data.batch_size=6", "+data.pairs_per_digit=1", "trainer.limit_train_batches=4", "trainer.max_steps=10",
    "trainer.val_every=3", "trainer.limit_val_batches=1", "trainer.log_every=2", "conflict.every=3", "tracker=jsonl",
]  # fmt: skip
# What a strategy needs beside itself: rotations; no running statistics that are trained.
NEEDS = {
    "strategy=rotograd": ["architecture=rotograd"],
    "strategy=pareto_manifold": ["freeze=[backbone.layers.1]", "strategy.preferences=2", "trainer.ema=0.9"],
}
STRATEGIES, WEIGHTINGS = composing.options("strategy"), composing.options("weighting")


def configuration(*overrides):
    return composing.configuration(*RESTLESS, *overrides)


def stopping_at(step):
    answers = iter([False] * (step - 1) + [True])
    return lambda: next(answers)


def run(folder, *overrides, stop_at=None):
    if stop_at is None:
        train(configuration(*overrides), folder)
    else:
        with pytest.raises(Preempted):
            train(configuration(*overrides), folder, stopping_at(stop_at))
    return folder


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The folder of a run that several tests read and none changes."""
    made = {}

    def folder(*overrides, stop_at=None):
        key = (overrides, stop_at)
        if key not in made:
            made[key] = run(tmp_path_factory.mktemp("once") / "run", *overrides, stop_at=stop_at)
        return made[key]

    return folder


@pytest.fixture
def stopped(once, tmp_path):
    """A copy of a run that was stopped at step ``at``, to resume or to break."""
    return lambda *overrides, at: shutil.copytree(once(*overrides, stop_at=at), tmp_path / "parts")


# ------------------------------------------------------------------------------------------ to the last bit


@pytest.mark.parametrize("stop_at", [2, 4, 6, 9], ids=["mid-epoch", "epoch's end", "evaluation", "evaluation in epoch"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_is_never_stopped(tmp_path, once, stop_at, workers):
    options = [f"trainer.num_workers={workers}", "trainer.keep=2", "trainer.ema=0.9", "trainer.deterministic=true"]
    whole = once(*options)
    parts = run(tmp_path / "parts", *options, stop_at=stop_at)
    assert checkpoint.load(parts)["step"] == stop_at
    run(parts, *options, "resume=auto")
    assert_same(left_by(whole), left_by(parts))


def whole_and_parts(tmp_path, *overrides):
    """The folder of a whole run, and a copy of it from when step 5 was its last checkpoint and 6 its last row."""
    whole, parts, steps = tmp_path / "whole", tmp_path / "parts", count(1)

    def copy_after_step_6():
        if next(steps) == 6:
            shutil.copytree(whole, parts)
        return False

    train(configuration("trainer.checkpoint_every=5", *overrides), whole, copy_after_step_6)
    assert checkpoint.load(parts)["step"] == 5
    return whole, parts


@pytest.mark.parametrize("choice", [f"strategy={s}" for s in STRATEGIES] + [f"weighting={w}" for w in WEIGHTINGS])
def test_with_every_strategy_and_weighting(tmp_path, choice):
    choices = [choice, *NEEDS.get(choice, [])]
    whole, parts = whole_and_parts(tmp_path, *choices)
    run(parts, *choices, "trainer.checkpoint_every=5", "resume=auto")
    assert_same(left_by(whole), left_by(parts))


@pytest.mark.parametrize(
    "options",
    [
        ["trainer.precision=fp16"],
        ["trainer.precision=bf16", "trainer.channels_last=true"],
        ["trainer.accumulate_grad_batches=2"],
        ["trainer.accumulate_grad_batches=2", "trainer.accumulate=exact", "strategy=mgda"],
        ["strategy=mgda", "strategy.smoothing=0.9", "strategy.every=2", "+strategy.rule.preference.left=2"],
        ["strategy=pcgrad", "strategy.space=parameters", "strategy.part=layers.6"],
        ["strategy=gradvac", "strategy.space=parameters", "strategy.groups=layer"],
    ],
    ids=" ".join,
)
def test_in_other_precisions_and_accumulating(tmp_path, options):
    whole, parts = whole_and_parts(tmp_path, *options)
    run(parts, *options, "trainer.checkpoint_every=5", "resume=auto")
    assert_same(left_by(whole), left_by(parts))


@pytest.mark.parametrize("strategy", ["naive", "detached", "mgda", "moco"])
def test_with_text_and_shared_parameters(tmp_path, strategy):
    text = [
        f"data.path={__file__}",
        "data=stdlib",
        "backbone=causal_transformer",
        "data.context=12",
        "data.batch_size=4",
    ]
    text += ["backbone.width=16", "heads=next_4", "share=[unembedding]", f"strategy={strategy}", "tracker=jsonl"]
    text += ["trainer.max_steps=8", "trainer.val_every=3", "trainer.limit_val_batches=1", "trainer.log_every=1"]
    text += [] if strategy == "naive" else ["strategy.token_chunks=3"]
    train(load(text), tmp_path / "whole")
    with pytest.raises(Preempted):
        train(load(text), tmp_path / "parts", stopping_at(4))
    train(load([*text, "resume=auto"]), tmp_path / "parts")
    assert_same(left_by(tmp_path / "whole"), left_by(tmp_path / "parts"))


@pytest.mark.parametrize(
    "lost", ["rng/cpu", "rng/python", "rng/numpy", "model", "optimizer", "step", "ema", "scheduler", "strategy"]
)
def test_what_is_lost_is_seen(once, stopped, lost, monkeypatch):
    """Negative control: without one part of the state the resumed run differs."""
    options = ["trainer.ema=0.9", "strategy=gradvac", "scheduler=step", "scheduler.step_size=2"]
    whole, parts = once(*options), stopped(*options, at=5)

    def forgetful(state, content, folder):
        part, _, inner = lost.partition("/")
        fresh = state.state_dict()
        if inner:
            content[part][0] |= {inner: fresh[part][0][inner]}
        else:
            content |= {part: fresh[part]}
        restore(state, content, folder)

    monkeypatch.setattr("mtl.train.restore", forgetful)
    run(parts, *options, "resume=auto")
    a, b = (left_by(folder)[0]["last.pt"] for folder in (whole, parts))
    assert not same(a, b)


def test_stopped_again_and_again(tmp_path):
    whole = run(tmp_path / "whole", "strategy=moco")
    parts = run(tmp_path / "parts", "strategy=moco", stop_at=2)  # after step 2, whose peak memory is recorded
    for _ in range(7):
        run(parts, "strategy=moco", "resume=auto", stop_at=1)
    run(parts, "strategy=moco", "resume=auto")
    assert_same(left_by(whole), left_by(parts))


def test_a_finished_run_has_nothing_left_to_do(tmp_path):
    options = ["trainer.patience=1", "optimizer=sgd", "optimizer.lr=0.0", "scheduler=constant",
               "backbone._target_=support.networks.Tiny"]  # fmt: skip
    folder = run(tmp_path / "run", *options)
    before = left_by(folder)
    assert before[1][-1]["split"] == "test" and before[0]["last.pt"]["step"] < 10, "it ran out of patience"
    run(folder, *options, "resume=auto")
    assert_same(before, left_by(folder))


def test_the_best_model_from_before_is_known_where_nothing_gets_better(tmp_path):
    """The learning rate is zero, so the first evaluation is the best."""
    still = ["optimizer=sgd", "optimizer.lr=0.0", "scheduler=constant", "trainer.overfit_batches=1",
             "trainer.monitor=left/accuracy", "trainer.mode=max"]  # fmt: skip
    whole = run(tmp_path / "whole", *still)
    parts = run(tmp_path / "parts", *still, stop_at=8)
    run(parts, *still, "resume=auto")
    a, b = (json.loads((folder / "summary.json").read_text()) for folder in (whole, parts))
    assert a["best"] == b["best"] and a["best"]["step"] == 3
    assert read_metrics(whole, "test") == read_metrics(parts, "test")


# ------------------------------------------------------------------------------------- after a kill


def test_a_kill_after_the_last_checkpoint_loses_the_steps_and_their_rows_only(once, stopped):
    """A kill leaves rows after the checkpoint's step, half a line, and half a file."""
    whole, parts = once(), stopped(at=4)
    with (parts / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "epoch": 1, "split": "train", "loss/left": 7.0}\n{"step": 6, "epo')
    (parts / "checkpoints" / "last.pt.tmp").write_bytes(b"half")
    run(parts, "resume=auto")
    assert_same(left_by(whole), left_by(parts))
    assert sorted(path.name for path in (parts / "checkpoints").iterdir()) == [
        "best.pt", "best.pt.sha256", "last.pt", "last.pt.sha256",
    ]  # fmt: skip


def test_a_kill_between_the_two_names_of_the_best_model(once, stopped):
    whole, parts = once(), stopped(at=6)
    content = checkpoint.load(parts)
    assert content["best_step"] == 6, "the case needs an evaluation that was the best"
    for name in ("best.pt", "best.pt.sha256"):
        (parts / "checkpoints" / name).unlink()
    run(parts, "resume=auto", stop_at=1)
    best = checkpoint.load(parts / "checkpoints" / "best.pt")
    assert best["step"] == 6, "it is there again before another evaluation could replace it"
    run(parts, "resume=auto")
    assert_same(left_by(whole), left_by(parts))


def test_a_kill_before_the_first_checkpoint_starts_anew(once, stopped):
    whole, parts = once(), stopped(at=2)
    for path in (parts / "checkpoints").iterdir():
        path.unlink()
    run(parts, f"resume={parts}")
    assert_same(left_by(whole), left_by(parts))


# ------------------------------------------------------------------------------- which checkpoint it is


def break_it(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_auto_takes_the_newest_valid_one_with_a_warning(tmp_path, caplog):
    whole = run(tmp_path / "whole", "trainer.keep=3")
    parts = run(tmp_path / "parts", "trainer.keep=3", stop_at=8)
    for name in ("last.pt", "step-00000008.pt"):
        content = (parts / "checkpoints" / name).read_bytes()
        (parts / "checkpoints" / name).unlink()  # the two names are hard links to one file
        (parts / "checkpoints" / name).write_bytes(content)
        break_it(parts / "checkpoints" / name)
    caplog.set_level("INFO", "mtl")
    run(parts, "trainer.keep=3", "resume=auto")
    assert "PASSED OVER" in caplog.text and "last.pt is broken" in caplog.text
    assert "resuming from" in caplog.text and "step-00000006.pt" in caplog.text
    assert (parts / "checkpoints" / "step-00000008.pt.broken").exists(), "nothing is thrown away"
    a, b = left_by(whole), left_by(parts)
    assert_same(a[0]["last.pt"], b[0]["last.pt"])
    assert_same(a[1], b[1])


def test_a_named_checkpoint_never_falls_back(tmp_path):
    folder = run(tmp_path / "run", "trainer.keep=3", stop_at=8)
    break_it(folder / "checkpoints" / "last.pt")
    for path in (folder, folder / "checkpoints" / "last.pt"):
        with pytest.raises(ConfigError, match=rf"resume={path}: The checkpoint .*last.pt is broken.* resume=auto"):
            train(configuration("trainer.keep=3", f"resume={path}"), folder)
    assert (folder / "checkpoints" / "step-00000006.pt").exists()


def test_checkpoints_that_are_all_broken_are_not_thrown_away(stopped):
    folder = stopped(at=5)
    for path in (folder / "checkpoints").glob("*.pt"):
        break_it(path)
    rows = (folder / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match=r"none of the checkpoints in .* can be used: move them away to start over"):
        train(configuration("resume=auto"), folder)
    assert (folder / "checkpoints" / "last.pt").exists() and (folder / "metrics.jsonl").read_text() == rows


def test_going_back_to_an_earlier_checkpoint_forgets_what_came_after(tmp_path):
    whole = run(tmp_path / "whole", "trainer.keep=9")
    folder = run(tmp_path / "run", "trainer.keep=9", stop_at=8)
    earlier = folder / "checkpoints" / "step-00000003.pt"
    with pytest.raises(Preempted):
        train(configuration("trainer.keep=9", f"resume={earlier}"), folder, stopping_at(1))
    assert [row["step"] for row in read_metrics(folder, "val")] == [3]
    assert {checkpoint.load(path)["step"] for path in (folder / "checkpoints").glob("*.pt")} == {3, 4}
    run(folder, "trainer.keep=9", "resume=auto")
    a, b = left_by(whole), left_by(folder)
    assert_same(a[0]["last.pt"], b[0]["last.pt"])
    assert_same(a[1], b[1])


def test_a_checkpoint_from_elsewhere_begins_a_run_of_its_own(tmp_path, once):
    whole, other = once(), once(stop_at=5)
    copied = tmp_path / "copied.pt"
    copied.write_bytes((other / "checkpoints" / "last.pt").read_bytes())
    folder = run(tmp_path / "mine", f"resume={copied}")
    rows = read_metrics(folder, "train")
    assert [row["step"] for row in rows] == [6, 8, 9, 10]
    assert_same(checkpoint.load(whole)["model"], checkpoint.load(folder)["model"])


def test_patience_begins_anew_where_the_best_model_is_not_at_hand(tmp_path):
    other = run(tmp_path / "other", "trainer.patience=1", stop_at=8)
    copied = tmp_path / "copied.pt"
    copied.write_bytes((other / "checkpoints" / "last.pt").read_bytes())
    folder = run(tmp_path / "mine", "trainer.patience=1", f"resume={copied}")
    assert checkpoint.load(folder)["step"] > 8


def test_a_broken_line_of_the_record_is_named(stopped):
    folder = stopped(at=5)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join([lines[0], "half a li\n", *lines[2:]]))
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is broken: line 2 is no JSON"):
        run(folder, "resume=auto")


def test_a_run_goes_on_in_its_own_folder_only(tmp_path, once):
    folder = once(stop_at=5)
    with pytest.raises(ConfigError, match="this run is resumed in its own folder"):
        train(configuration(f"resume={folder}"), tmp_path / "another")


def test_a_folder_with_a_run_is_not_written_over(stopped):
    folder = stopped(at=5)
    before = left_by(folder)
    with pytest.raises(ConfigError, match="already holds a run: resume=auto resumes it"):
        train(configuration(), folder)
    assert_same(before, left_by(folder))


@pytest.mark.parametrize(("name", "words"), [("text", "cannot be read as a checkpoint"), ("nothing", "does not exist")])
def test_something_that_is_no_checkpoint(tmp_path, name, words):
    (tmp_path / "text").write_text("text")
    with pytest.raises(ConfigError, match=words):
        train(configuration(f"resume={tmp_path / name}"), tmp_path / "run")


# -------------------------------------------------------------------------- another configuration


@pytest.mark.parametrize(
    "change", ["trainer.max_steps=12", "trainer.log_every=1", "conflict.every=null", "trainer.num_workers=1",
               "trainer.keep_memory=false", "tracker.project=other", "trainer.keep=1", "trainer.checkpoint_every=1",
               "device=cpu", "+optimizer.eps=1e-8"],
)  # fmt: skip
def test_what_may_be_changed(stopped, change):
    folder = stopped("scheduler=constant", at=5)
    run(folder, "scheduler=constant", change, "resume=auto")
    assert checkpoint.load(folder)["step"] == (12 if "max_steps" in change else 10)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["optimizer.lr=0.5"], ["optimizer.lr was 0.002 and is 0.5"]),
        (["seed=1"], ["seed was 0 and is 1"]),
        (["strategy=mgda"], ["strategy._target_ was mtl.strategies.Detached and is mtl.strategies.Balanced", "rule"]),
        (
            ["data.batch_size=7", "trainer.val_every=2"],
            ["data.batch_size was 6 and is 7; ", "val_every was 3 and is 2"],
        ),
        (["+optimizer.eps=1e-3"], ["optimizer.eps was 1e-08 and is 0.001"]),
    ],
)
def test_what_may_not_is_an_error_that_lists_it(stopped, changes, words):
    folder = stopped(at=5)
    before = left_by(folder)
    with pytest.raises(ConfigError) as caught:
        train(configuration(*changes, "resume=auto"), folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "seed was" not in str(caught.value) or "seed=1" in changes
    assert_same(before, left_by(folder))


@pytest.mark.parametrize(
    ("was", "now", "is_place"),
    [
        ("/a/b", "/c/d", True),
        ("old", "here", True),  # it is there
        (None, "/lists", True),
        (["/a", "/b"], ["/c", "/d"], True),
        ("train", "val", False),
        (32, 64, False),
        ("/a", 5, False),
        ("/a", "/a", False),
    ],
)
def test_an_argument_that_says_where_the_data_are_may_change(tmp_path, monkeypatch, was, now, is_place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    found = changed_places({"data": {"x": {"any": was}}, "name": was}, {"data": {"x": {"any": now}}, "name": now})
    assert found == ({"data.x.any": now} if is_place else {}), "and of no other section"


def test_a_run_can_be_made_longer_where_the_schedule_can(tmp_path):
    whole = run(tmp_path / "whole", "trainer.max_steps=30", "trainer.val_every=30", "scheduler=cosine")
    parts = run(tmp_path / "parts", "trainer.max_steps=15", "trainer.val_every=30", "scheduler=cosine")
    run(parts, "trainer.max_steps=30", "trainer.val_every=30", "scheduler=cosine", "resume=auto")
    expected = {row["step"]: row["lr"] for row in read_metrics(whole, "train")}
    after = [row for row in read_metrics(parts, "train") if row["step"] > 16]  # 16: its rate was set before
    assert len(after) > 5 and all(row["lr"] == pytest.approx(expected[row["step"]]) for row in after)
    assert len(read_metrics(parts, "test")) == 1, "the test of the shorter run is gone"


def test_a_schedule_that_cannot_be_made_longer_is_refused(tmp_path):
    torchs = ["scheduler=constant", "~scheduler.factor",
              "scheduler._target_=torch.optim.lr_scheduler.CosineAnnealingLR"]  # fmt: skip
    folder = run(tmp_path / "run", *torchs)
    with pytest.raises(ValueError, match="torch's CosineAnnealingLR cannot change T_max from 10 to 20"):
        run(folder, *torchs, "trainer.max_steps=20", "resume=auto")


# ------------------------------------------------------------------------------------- the command line


def test_the_command_line_is_the_one_the_run_was_started_with(tmp_path, monkeypatch):
    folder = tmp_path / "it's"
    (folder / "checkpoints").mkdir(parents=True)
    save_config(folder, {"seed": 1}, ["strategy=mgda", "seed=1", "+a.b=[1,2]", "resume=auto"])
    assert read_run(folder, "run").overrides == ["strategy=mgda", "seed=1", "+a.b=[1,2]"], "the report reads them too"
    for named in (folder, folder / "checkpoints" / "last.pt"):
        assert expand_resume(["-cd", "conf", f"resume={named}", "seed=2", "++trainer.max_steps=9"]) == [
            f"--config-dir={Path('conf').absolute()}", "strategy=mgda",
            "+a.b=[1,2]", "resume='" + str(named).replace("'", "\\'") + "'",
            "hydra.run.dir='" + str(folder).replace("'", "\\'") + "'", "seed=2", "++trainer.max_steps=9",
        ]  # fmt: skip
    given = [f"hydra.run.dir={folder}", "resume=auto"]
    assert expand_resume(given) == [given[0], "strategy=mgda", "seed=1", "+a.b=[1,2]", "resume=auto"]
    monkeypatch.chdir(folder / "checkpoints")
    assert "strategy=mgda" in expand_resume(["resume=last.pt"])
    for untouched in (
        ["seed=1"],
        ["resume=auto"],
        ["-m", "-cd", "/x", f"resume={folder}"],
        [f"resume={tmp_path / 'nothing'}"],
    ):
        assert expand_resume(untouched) == untouched


def test_a_flag_may_stand_between_overrides():
    given = ["data=mine", "-m", "strategy=naive,mgda", "-cd", "conf", "--cfg", "job", "seed=1", "--resolve"]
    first = ["-m", "-cd", "conf", "--cfg", "job", "data=mine", "strategy=naive,mgda", "seed=1", "--resolve"]
    assert flags_first(given) == first and flags_first(first) == first
    assert flags_first(["seed=1", "--config-dir=conf"]) == ["--config-dir=conf", "seed=1"]
    assert flags_first(["seed=1", "-cd"]) == ["-cd", "seed=1"], "Hydra names what is missing"


def test_the_folder_of_configurations_is_remembered(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    save_config(folder, {}, ["--config-dir=/there/conf", "data=mine"])
    resumed = expand_resume([f"resume={folder}", "seed=1"])
    assert resumed[:2] == ["--config-dir=/there/conf", "data=mine"]
    assert expand_resume([f"resume={folder}", "-cd", "/here"])[:2] == ["--config-dir=/here", "data=mine"]
    assert read_run(folder, "run").command == "mtl-train --config-dir=/there/conf data=mine"


def test_the_latest_run_of_the_same_command_line_is_found(tmp_path):
    def made(name, overrides):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        save_config(folder, {}, overrides)
        return folder

    made("2026-01-01/10-00-00", ["seed=1", "strategy=mgda"])
    wanted = made("2026-01-02/10-00-00", ["--config-dir=/there", "strategy=mgda", "seed=1", "trainer.max_steps=5"])
    made("2026-01-03/10-00-00", ["seed=2", "strategy=mgda"])
    made("2026-01-04/10-00-00", None)
    assert newest_run(tmp_path, ["seed=1", "strategy=mgda", "resume=auto", "trainer.max_steps=7"]) == wanted
    assert newest_run(tmp_path, ["seed=3", "strategy=mgda"]) is None


def test_a_finished_run_is_told_from_others(tmp_path):
    cfg = configuration()
    assert not is_finished(cfg, tmp_path)
    save_config(tmp_path, redacted(cfg), [])
    (tmp_path / "status.json").write_text('{"status": "finished"}')
    assert is_finished(configuration("trainer.log_every=1"), tmp_path)
    assert not is_finished(configuration("trainer.max_steps=20"), tmp_path), "it is to become longer"
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        is_finished(configuration("seed=1"), tmp_path)
    (tmp_path / "status.json").write_text('{"status": "preempted"}')
    assert not is_finished(cfg, tmp_path)
