"""What a run draws does not depend on what the process had imported before."""

import json
import sys

CODE = """
import json, random, sys
import numpy as np, torch
from mtl.config import load
from mtl.config.build import build
{before}
draws = []
for _ in range(2):
    build(load(["~backbone", "+backbone._target_=support.networks.Tiny", "data.image_size=8", "device=cpu", "seed=3"]))
    draws.append([random.random(), float(np.random.rand()), torch.rand(1).item()])
print(json.dumps(draws))
"""


def drawn(tmp_path, before):
    import os
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", CODE.format(before=before)], capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def test_the_first_run_of_a_process_draws_as_the_later_ones_and_as_where_all_was_imported(tmp_path):
    first, second = drawn(tmp_path, "assert 'sklearn' not in sys.modules")
    assert first == second == drawn(tmp_path, "import sklearn.datasets; random.random(); np.random.rand()")[0]
