import torch
from support.examples import own_parameters, parameters, run_example


def look(scope):
    return parameters(scope["model"]), [(scope["x"], scope["kind"], scope["size"])] * 20


def test_it_is_the_frameworks_own_run(tmp_path):
    printed, (found, batches) = run_example("plain_pytorch", tmp_path, look)
    torch.testing.assert_close(found, own_parameters(batches), rtol=0, atol=1e-12)
    assert (found - own_parameters(batches, balanced=False)).abs().max() > 1e-4  # the control: without the rule
    assert printed.count("cosine") == 20
