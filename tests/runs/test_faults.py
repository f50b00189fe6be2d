"""A full disk, a removed folder, memory that runs out, secrets: what survives, and which message the user sees."""

import json
import shutil

import pytest
import torch
from support.exactness import assert_same, left_by
from support.processes import Training, fill, small_disk, until

from mtl.config import load
from mtl.runs import checkpoint
from mtl.system.memory import OutOfMemory, explained, is_out_of_memory
from mtl.train import train

RUN = [
    "~backbone", "+backbone._target_=support.restless.Backbone", "data._target_=support.restless.AugmentedDigits",
    "data.image_size=8",
    "data.batch_size=2", "+data.pairs_per_digit=1", "trainer.max_steps=60", "trainer.val_every=20", "device=cpu",
    "trainer.limit_val_batches=1", "trainer.log_every=1", "trainer.checkpoint_every=5", "tracker=jsonl",
]  # fmt: skip


def status(folder):
    return json.loads((folder / "status.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    train(load(RUN), folder)
    return left_by(folder)


class AtStep:
    """A ``stop`` that never stops the run, but calls ``step_<n>`` after step n."""

    def __init__(self, **actions):
        self.actions = {int(name.removeprefix("step_")): action for name, action in actions.items()}
        self.step = 0

    def __call__(self):
        self.step += 1
        self.actions.get(self.step, bool)()
        return False


# ---------------------------------------------------------------------------------------- a full disk


def full(path):
    """Let every later write to ``path`` find a full disk."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/full")


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, undisturbed, caplog):
    half = tmp_path / "checkpoints" / "last.pt.tmp"
    train(load(RUN), tmp_path, AtStep(step_7=lambda: full(half)))
    assert "The checkpoint of step 10 cannot be written" in caplog.text
    assert "the last good one is of step 5. Training goes on; 2 more in a row would end it." in caplog.text
    assert_same(undisturbed, left_by(tmp_path))


def test_three_that_fail_in_a_row_end_the_run_with_the_last_good_one_kept(tmp_path, undisturbed):
    half = tmp_path / "checkpoints" / "last.pt.tmp"
    with pytest.raises(OSError, match=r"The checkpoint of step 25 .*; the last good one is of step 10\. The run ends"):
        train(load(RUN), tmp_path, AtStep(step_11=half.mkdir))  # a folder of that name blocks every later write
    assert checkpoint.load(tmp_path)["step"] == 10
    half.rmdir()
    train(load([*RUN, "resume=auto"]), tmp_path)
    assert_same(undisturbed, left_by(tmp_path))


def test_a_best_model_that_could_not_be_written_is_not_the_best(tmp_path):
    """The learning rate is zero, so step 20 is the best; its file cannot be written, so step 40 becomes the best.

    A folder with the name of the temporary file blocks the write for longer than it is retried.
    """
    still = ["optimizer=sgd", "optimizer.lr=0.0", "scheduler=constant", "backbone._target_=support.networks.Tiny"]
    half = tmp_path / "checkpoints" / "last.pt.tmp"
    train(load([*RUN, *still]), tmp_path, AtStep(step_18=half.mkdir, step_25=half.rmdir))
    assert json.loads((tmp_path / "summary.json").read_text())["best"]["step"] == 40
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt")["step"] == 40


def test_the_best_model_is_tried_again(tmp_path, undisturbed, caplog):
    half = tmp_path / "checkpoints" / "last.pt.tmp"
    train(load(RUN), tmp_path, AtStep(step_18=lambda: full(half)))
    assert "cannot be written" not in caplog.text
    assert_same(undisturbed, left_by(tmp_path))


def test_a_folder_that_is_gone_ends_the_run_after_three_tries(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(
        OSError, match=r"The checkpoint of step 20 cannot be written .*; there is none before it\. The run"
    ):
        train(load(RUN), folder, AtStep(step_7=lambda: shutil.rmtree(folder)))


@pytest.fixture
def disk(tmp_path):
    try:
        with small_disk(tmp_path / "disk", megabytes=2) as disk:
            yield disk
    except OSError as error:
        pytest.skip(str(error))  # the tests above fill /dev/full instead


@pytest.mark.parametrize("freed", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["freed", "never freed"])
def test_a_disk_that_is_full_for_a_while(tmp_path, disk, undisturbed, freed):
    folder = disk / "run"
    # The console's log is on another disk. The steps are slow, so that the disk is full for some of them and not all.
    training = Training(tmp_path, *RUN, f"hydra.run.dir={folder}", "+backbone.fault_at=1", "+backbone.sleep=0.05")
    training.start()
    until(lambda: (folder / "checkpoints" / "last.pt").exists())
    filler = fill(disk)
    if freed:
        until(lambda: "cannot be written" in training.log.read_text() and "its lines wait" in training.log.read_text())
        filler.unlink()
        assert training.wait() == 0, training.log.read_text()
    else:
        assert training.wait() == 1
        words = training.log.read_text()
        assert "The run ends: it was number 3 in a row to fail." in words and "OSError" in words
        assert checkpoint.load(folder)["step"] <= 10, "the last good one is still there, and good"
        filler.unlink()
        again = Training(tmp_path, f"resume={folder}")
        again.start()
        assert again.wait() == 0, again.log.read_text()
    rows = left_by(folder)
    assert_same(undisturbed[1], rows[1])
    assert_same(undisturbed[0]["last.pt"]["model"], rows[0]["last.pt"]["model"])


# ------------------------------------------------------------------------------------- no memory left

HUGE = 10**16


def test_a_job_that_runs_out_of_memory_says_so_and_the_next_one_runs(tmp_path):
    sweep = ["-m", *RUN, "trainer.max_steps=10", f"+backbone.memory={HUGE},0", "+backbone.fault_at=3"]
    training = Training(tmp_path, *sweep)
    training.start()
    assert training.wait() == 1
    first, second = sorted(path.parent for path in tmp_path.rglob("status.json"))
    assert (status(first)["status"], status(second)["status"]) == ("oom", "finished")
    told = status(first)["error"]
    assert told.startswith("OutOfMemory: Out of memory at step 3 (") and "the peak was" in told
    assert "a smaller data.batch_size" in told and f"tried to allocate {HUGE} bytes" in told


def test_memory_errors_of_every_kind_are_told_from_others():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(HUGE)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("the head exploded"))
    state = type("State", (), {"step": 4, "peak_memory": 2**30})
    with (
        pytest.raises(OutOfMemory, match=r"step 5 \(CUDA out of memory\.\); .* 1\.00 GiB of it in a step"),
        explained(state),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate much")
    with pytest.raises(RuntimeError, match="the head exploded"), explained(state):
        raise RuntimeError("the head exploded")


# -------------------------------------------------------------------------------------------- secrets

SECRET = "s3cr3t-0123456789abcdef"


def files_with(folder, text):
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_secret_stays_in_the_environment(tmp_path):
    given = ["+data.token='${oc.env:MY_TOKEN}'", "trainer.max_steps=4", "tracker.mode=offline"]
    training = Training(tmp_path, *RUN, *given, "hydra.run.dir=run", MY_TOKEN=SECRET, WANDB_API_KEY=SECRET * 2)
    training.start()
    assert training.wait() == 0, training.log.read_text()
    assert files_with(tmp_path, SECRET) == []
    assert len(files_with(tmp_path / "run", "${oc.env:MY_TOKEN}")) >= 4, "config.yaml, .hydra, checkpoints, W&B"
    again = Training(tmp_path, "resume=run", "trainer.max_steps=6", MY_TOKEN=SECRET)
    again.start()
    assert again.wait() == 0, again.log.read_text()
    assert files_with(tmp_path, SECRET) == []


@pytest.mark.parametrize("mode", [[], ["-m", "seed=0,1"]], ids=["run", "sweep"])
def test_a_secret_that_is_written_down_is_refused_before_it_is_written_again(tmp_path, mode):
    training = Training(tmp_path, *mode, *RUN, f"+data.token={SECRET}")
    training.start()
    assert training.wait() == 1
    told = training.log.read_text()
    assert told.splitlines()[-1] == (
        "data.token is a secret and must not be written down: name a variable of the environment that holds it, as in "
        "data.token='${oc.env:TOKEN}'."
    )
    assert files_with(tmp_path, SECRET) == []
