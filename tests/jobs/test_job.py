"""A job in this process: its status, the exception that Hydra gets, and the memory that it releases."""

import signal
import weakref
from types import SimpleNamespace

import pytest
from hydra._internal.utils import _is_env_set
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from mtl.data.loader import DataError
from mtl.errors import ConfigError
from mtl.jobs.job import JobFailed, run_job
from mtl.runs.files import read_status, write_json, write_status
from mtl.system.signals import Preempted
from mtl.training.nonfinite import NotFinite


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Run a body as a job of a sweep, in ``tmp_path``."""
    runtime = SimpleNamespace(output_dir=str(tmp_path), config_sources=[], choices={"data": "digits"})
    hydra = SimpleNamespace(
        runtime=runtime, mode=RunMode.MULTIRUN, overrides=SimpleNamespace(task=OmegaConf.create([]))
    )
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    return lambda body, **cfg: run_job(body, OmegaConf.create({"skip_finished": False} | cfg))


def failing_with(error):
    def body(cfg, folder, stop):
        raise error

    return body


def test_a_job_is_running_and_then_finished(tmp_path, job):
    seen = []

    def body(cfg, folder, stop):
        seen.append(read_status(folder)["status"])
        return 0.5

    assert job(body) == 0.5
    assert seen == ["running"] and read_status(tmp_path)["status"] == "finished"


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ArithmeticError("a\nb"), "failed", "ArithmeticError: a"),
        (MemoryError("no more"), "oom", "MemoryError: no more"),
        (ConfigError("lr=0 must be positive."), "failed", "lr=0 must be positive."),
        (DataError("sample 3 cannot be read.\na trace"), "failed", "sample 3 cannot be read."),
        (NotFinite("step 3: the loss of a is nan."), "failed", "step 3: the loss of a is nan."),
    ],
)
def test_an_error_is_the_status_and_hydra_gets_one_without_a_traceback(tmp_path, job, error, status, message):
    with pytest.raises(JobFailed, match="did not start" if isinstance(error, ConfigError) else "run failed"):
        job(failing_with(error))
    assert (read_status(tmp_path)["status"], read_status(tmp_path)["error"]) == (status, message)


def test_an_error_that_says_what_to_do_comes_without_a_traceback(job, caplog, monkeypatch):
    for error in (DataError("sample 3 cannot be read.\na trace"), NotFinite("nan"), ArithmeticError("a bug")):
        caplog.clear()
        with pytest.raises(JobFailed):
            job(failing_with(error))
        (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
        assert "\n" not in record.getMessage() and bool(record.exc_info) == (type(error) is ArithmeticError)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(JobFailed):
        job(failing_with(DataError("sample 3 cannot be read.\na trace")))
    assert caplog.records[-1].exc_info and "a trace" in caplog.records[-1].getMessage(), "where it is asked for"


@pytest.mark.parametrize(
    ("value", "has_traceback"), [(None, False), ("", False), ("0", False), ("false", False), ("1", True)]
)
def test_the_traceback_of_a_mistake_is_there_where_hydra_would_give_it(job, monkeypatch, caplog, value, has_traceback):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if value is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", value)
    assert _is_env_set("HYDRA_FULL_ERROR") == has_traceback
    with pytest.raises(JobFailed):
        job(failing_with(ConfigError("lr=0 must be positive.")))
    assert bool(caplog.records[-1].exc_info) == has_traceback


def test_a_mistake_leaves_the_status_of_an_earlier_run(tmp_path, job):
    write_status(tmp_path, "finished")
    before = read_status(tmp_path)
    with pytest.raises(JobFailed):
        job(failing_with(ConfigError("this folder holds a run")))
    assert read_status(tmp_path) == before


def test_a_failed_job_releases_its_objects(job):
    class Model:
        pass

    alive = []

    def body(cfg, folder, stop):
        model = Model()
        alive.append(weakref.ref(model))
        raise ArithmeticError

    with pytest.raises(JobFailed) as kept:
        job(body)
    assert alive[0]() is None and kept.value is not None


def test_a_signal_ends_the_sweep_also_where_it_comes_in_a_job_that_is_skipped(tmp_path, job, monkeypatch):
    write_json(tmp_path / "summary.json", {"best": {"monitor": 0.25}})

    def finished(cfg, folder):
        if cfg.signalled:
            signal.raise_signal(signal.SIGTERM)
        return True

    monkeypatch.setattr("mtl.jobs.job.is_finished", finished)
    body = failing_with(AssertionError("a finished run runs again"))
    assert job(body, skip_finished=True, signalled=False) == 0.25
    with pytest.raises(Preempted):
        job(body, skip_finished=True, signalled=True)
