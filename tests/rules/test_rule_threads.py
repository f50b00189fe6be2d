"""No rule wakes the threads of the BLAS of NumPy and SciPy, which would spin beside the trunk's threads."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, time
import numpy as np
import torch
from scipy.linalg.lapack import dtrtrs
from torch import nn
from mtl import rules
from mtl.conflict import conflict_metrics

def of_others(call):
    call()
    own, all_ = time.thread_time(), time.process_time()
    for _ in range(20):
        call()
        time.sleep(0.002)  # awake threads go on while this one sleeps
    return 1000 * (time.process_time() - all_ - time.thread_time() + own) / 20

torch.set_num_threads(1)
rows = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
gram, found = rows @ rows.T, {}
for name in ("MGDA", "CAGrad", "UPGrad", "DualProj", "NashMTL", "FairGrad", "IMTLG", "AlignedMTL", "ConFIG", "PCGrad"):
    rule = getattr(rules, name)()
    found[name] = of_others(lambda: rule(gram))
found["conflict metrics"] = of_others(lambda: conflict_metrics(gram, "abcdefgh"))
matrix, right = np.triu(gram.numpy()), np.ones((8, 2))
print(json.dumps([found, of_others(lambda: dtrtrs(matrix, right, trans=1))]))
"""


@pytest.mark.skipif(os.cpu_count() == 1, reason="one core: no thread can be awake beside another")
def test_no_rule_wakes_other_threads():
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found, control = json.loads(done.stdout)
    assert control > 0.5, "milliseconds of other threads: the control"
    assert max(found.values()) < 0.25 * control, found
