"""The script by torchrun on two ranks; torchrun starts this file, which saves what the script leaves."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def run_on_a_rank(out):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    scope = runpy.run_path(str(ROOT / "examples" / "ddp_torchrun.py"), run_name="__main__")
    if os.environ["RANK"] == "1":  # which has printed nothing
        parameters = torch.nn.utils.parameters_to_vector(scope["model"].parameters()).detach()
        torch.save((parameters, scope["x"], scope["kind"], scope["size"]), out)


def test_two_ranks_are_one_process_on_the_whole_batch(tmp_path):
    from support.examples import own_parameters

    agent = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--local-addr=localhost", __file__]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [sys.executable, *agent, str(tmp_path / "rank1.pt")], capture_output=True, text=True, timeout=300,
        env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, *batch = torch.load(tmp_path / "rank1.pt")
    own, plain = (own_parameters([batch] * 20, balanced) for balanced in (True, False))
    torch.testing.assert_close(found, own, rtol=0, atol=1e-12)
    assert (found - plain).abs().max() > 1e-4  # the control: without the rule
    assert done.stdout.count("cosine") == 20  # once, not on both ranks


if __name__ == "__main__":
    run_on_a_rank(*sys.argv[1:])
