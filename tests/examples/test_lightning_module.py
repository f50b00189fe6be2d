import torch
from support.examples import own_parameters, parameters, run_example

# Options of the Trainer, and the same of the framework's own run.
CASES = {
    "as it is": ({}, {}),
    "accumulated": ({"accumulate_grad_batches": 2}, {"accumulate": 2}),
    "clipped": ({"gradient_clip_val": 0.1}, {"max_norm": 0.1}),
    "bf16": ({"precision": "bf16-mixed"}, {"dtype": torch.bfloat16}),
}


def look(scope):
    found = {}
    for name, (options, _) in CASES.items():
        torch.set_default_dtype(torch.float32 if name == "bf16" else torch.float64)  # autocast leaves float64 alone
        model = scope["train"](**options)
        found[name] = parameters(model), list(scope["data"]()) * 5
    return found


def test_it_is_the_frameworks_own_run(tmp_path):
    printed, cases = run_example("lightning_module", tmp_path, look)
    for name, (found, batches) in cases.items():
        own, plain = (own_parameters(batches, balanced, **CASES[name][1]) for balanced in (True, False))
        tolerance = 1e-6 if name == "bf16" else 1e-12
        torch.testing.assert_close(found, own, rtol=0, atol=tolerance, msg=lambda words, name=name: f"{name}: {words}")
        assert (found - plain).abs().max() > 1e-4, name  # the control: without the rule
    assert "conflict/cos/kind~size" in printed
    assert not list(tmp_path.iterdir())
