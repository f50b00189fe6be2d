"""experiments/wandb_sweep.yaml as an agent of W&B runs it: its command line, in a process, with a server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.wandb_server import WandbServer
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

ROOT = Path(__file__).parents[2]
SWEEP = yaml.safe_load((ROOT / "experiments" / "wandb_sweep.yaml").read_text())


def agents_command(chosen: dict[str, object]) -> list[str]:
    """The command line that wandb.wandb_agent makes of a sweep and one choice of its parameters."""
    variables = create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})
    variables |= {"program": [SWEEP["program"]], "env": ["/usr/bin/env"]}
    words = create_sweep_command(list(SWEEP["command"]))
    return [part for word in words for part in (variables[word[2:-1]] if word.startswith("${") else [word])]


def test_the_parameters_are_names_that_hydra_knows_and_numbers() -> None:
    from mtl.config import load

    for strategy in SWEEP["parameters"]["strategy"]["values"]:
        load([f"strategy={strategy}"])
    assert isinstance(SWEEP["parameters"]["optimizer.lr"]["min"], float)  # 1e-3 would be text in YAML
    assert agents_command({"strategy": "mgda", "optimizer.lr": 1e-05}) == [
        "/usr/bin/env", "mtl-train", "tracker=wandb", "strategy=mgda", "optimizer.lr=1e-05",
    ]  # fmt: skip


@pytest.mark.slow
def test_two_runs_of_an_agent_share_the_sweep_as_their_group(tmp_path: Path, online: WandbServer) -> None:
    own = ["trainer.max_steps=2", "trainer.limit_val_batches=1", "data.batch_size=4"]
    for run_id, strategy in (("first", "mgda"), ("second", "naive")):
        words = agents_command({"strategy": strategy, "optimizer.lr": 0.005, "seed": 1})
        words[words.index("mtl-train")] = f"{sys.executable}"
        words[2:2] = ["-m", "mtl.train", *own]
        parameters = tmp_path / f"{run_id}.yaml"
        parameters.write_text(
            yaml.safe_dump({"wandb_version": 1, "strategy": {"value": strategy}, "seed": {"value": 1}})
        )
        agent = {"WANDB_SWEEP_ID": "sweep123", "WANDB_RUN_ID": run_id, "WANDB_SWEEP_PARAM_PATH": str(parameters)}
        environment = {**os.environ, **agent, "PYTHONPATH": str(ROOT), "WANDB_MODE": "online"}
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
    assert set(online.runs) == {"first", "second"}
    for run_id, strategy in (("first", "mgda"), ("second", "naive")):
        run = online.runs[run_id]
        assert run.created["groupName"] == "sweep123" and run.created["sweep"] == "sweep123"
        assert run.config["strategy"] == strategy and run.config["optimizer"]["lr"] == 0.005
        assert len(run.column("val/loss/total")) == 1 and run.exit_code == 0
