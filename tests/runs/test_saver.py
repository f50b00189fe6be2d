"""The checkpoints of a run, and what becomes of it when they cannot be written."""

from types import SimpleNamespace

import pytest
from torch import nn

from mtl.runs import checkpoint
from mtl.runs.saver import FAILED_SAVES, Saver


class State(SimpleNamespace):
    """What a Saver asks of a TrainState."""

    def state_dict(self):
        return {"step": self.step, "best": self.best, "best_step": self.best_step}


@pytest.fixture
def state():
    return State(step=0, best=None, best_step=0, best_metrics={}, strategy=nn.Identity())


@pytest.fixture
def saver(tmp_path, state, monkeypatch):
    monkeypatch.setattr("mtl.runs.saver.time.sleep", lambda seconds: None)
    return Saver(state, SimpleNamespace(folder=tmp_path, config={}, wandb_id=None, flush=lambda: None), keep=2, data={})


@pytest.fixture
def full_disk(monkeypatch):
    """Call it, and from then on nothing can be written."""

    def fail(*arguments):
        raise OSError("No space left on device")

    return lambda: monkeypatch.setattr(checkpoint, "save", fail)


def steps_saved(folder):
    return {path.name: checkpoint.step_of(path) for path in (folder / "checkpoints").glob("*.pt")}


def test_last_best_and_the_latest_numbered_checkpoints(saver, state, tmp_path):
    for state.step in (1, 2, 3):
        saver.save((0.5, {"loss/total": 0.5}) if state.step == 2 else None)
    assert (state.best, state.best_step, state.best_metrics) == (0.5, 2, {"loss/total": 0.5})
    assert steps_saved(tmp_path) == {"last.pt": 3, "best.pt": 2, "step-00000002.pt": 2, "step-00000003.pt": 3}
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt")["best"] == 0.5


def test_a_best_model_that_cannot_be_written_is_not_the_best(saver, state, tmp_path, full_disk, caplog):
    state.step = 1
    saver.save((0.5, {"loss/total": 0.5}))
    full_disk()
    state.step = 2
    saver.save((0.1, {"loss/total": 0.1}))
    assert (state.best, state.best_step, state.best_metrics) == (0.5, 1, {"loss/total": 0.5})
    assert "step 2 cannot be written" in caplog.text and "the last good one is of step 1" in caplog.text
    assert steps_saved(tmp_path)["best.pt"] == 1


def test_the_run_ends_when_too_many_saves_in_a_row_fail(saver, state, full_disk):
    full_disk()
    for state.step in range(1, FAILED_SAVES):
        saver.save()
    with pytest.raises(OSError, match=r"there is none before it. The run ends: it was number 3 in a row"):
        saver.save()


def test_the_run_ends_when_its_last_state_cannot_be_written(saver, full_disk):
    full_disk()
    with pytest.raises(OSError, match="cannot be written"):
        saver.save(must=True)
