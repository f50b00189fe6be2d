"""How far runs are, from files with known times."""

import json
import os
from datetime import datetime, timedelta, timezone

import pytest
from support.report_runs import write_run

from mtl.report.progress import TAIL, Progress, progress_of

START = datetime(2030, 1, 1, tzinfo=timezone.utc)


def write(folder, rows=4, status="running", started=START, changed=START, seconds=40, error=None, **trainer):
    """A run whose last row, of step 10 × ``rows``, was written ``seconds`` after its start."""
    run = write_run(folder, status=status, rows=rows, trainer=trainer)
    told = {"status": status, "started": started.isoformat(), "time": changed.isoformat()}
    (run / "status.json").write_text(json.dumps(told | ({"error": error} if error else {})))
    written = (started + timedelta(seconds=seconds)).timestamp()
    os.utime(run / "metrics.jsonl", (written, written))
    return run


def after(seconds):
    return START + timedelta(seconds=seconds)


def test_the_rest_is_expected_to_take_as_long_a_step(tmp_path):
    found = progress_of(write(tmp_path / "0", max_steps=100), "0", after(41))
    assert (found.step, found.total) == (40, 100)
    assert found.end == after(100) and found.silent is None  # 40 s for 40 steps, so 60 s for 60 more


@pytest.mark.parametrize(
    ("trainer", "total"),
    [
        ({"max_epochs": 2, "max_steps": None}, 200),  # a row every 10 steps and 0.1 epochs
        ({"max_epochs": 2, "max_steps": 150}, 150),
        ({"max_epochs": 1, "max_steps": 150}, 100),
        ({"fast_dev_run": True}, 1),
    ],
    ids=["epochs", "steps", "both", "dry run"],
)
def test_the_shorter_limit_counts(tmp_path, trainer, total):
    assert progress_of(write(tmp_path / "0", **trainer), "0", after(41)).total == total


def test_a_resumed_run_has_no_expected_end(tmp_path):
    run = write(tmp_path / "0", changed=after(30), max_steps=100)
    assert progress_of(run, "0", after(41)).end is None


def test_a_long_silence_is_said_and_a_short_one_is_not(tmp_path):
    run = write(tmp_path / "0", max_steps=100)  # a row every 10 s
    assert progress_of(run, "0", after(40 + 99)).silent is None
    assert progress_of(run, "0", after(40 + 101)).silent == timedelta(seconds=101)
    begun = write(tmp_path / "1", rows=0)
    assert progress_of(begun, "1", after(30)) == Progress("1", "running")
    assert progress_of(begun, "1", after(90)).silent == timedelta(seconds=90)


def test_a_failed_run_says_why_and_expects_nothing(tmp_path):
    run = write(tmp_path / "0", status="failed", error="ValueError: no", max_steps=100)
    assert progress_of(run, "0", after(4000)) == Progress("0", "failed", "ValueError: no", 40, 100)


def test_a_line_that_is_being_written_and_a_long_file_are_read(tmp_path):
    run = write(tmp_path / "0", rows=1000, max_steps=20000)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10010, "epo')
    assert (run / "metrics.jsonl").stat().st_size > TAIL
    assert progress_of(run, "0", after(41)).step == 10000


def test_a_folder_without_anything_is_unknown(tmp_path):
    assert progress_of(tmp_path, "0", START) == Progress("0", "unknown")
