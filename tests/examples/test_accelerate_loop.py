import torch
from support.examples import own_parameters, parameters, run_example


def look(scope):
    found = {}
    for count in (1, 2):
        model = scope["train"](gradient_accumulation_steps=count)
        found[count] = parameters(model), list(scope["data"]()) * 5
    return found


def test_it_is_the_frameworks_own_run(tmp_path):
    printed, cases = run_example("accelerate_loop", tmp_path, look)
    for count, (found, batches) in cases.items():
        own, plain = (own_parameters(batches, balanced, accumulate=count) for balanced in (True, False))
        torch.testing.assert_close(found, own, rtol=0, atol=1e-12, msg=lambda words, n=count: f"{n} batches: {words}")
        assert (found - plain).abs().max() > 1e-4, count  # the control: without the rule
    assert printed.count("conflict/cos/kind~size") == 5
