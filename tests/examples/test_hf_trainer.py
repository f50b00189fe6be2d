import sys

import pytest
import torch
from support.examples import own_run, parameters, run_example
from torch import nn

from mtl.model import MultiTaskModel

STEPS = 8  # batches of two epochs


class FirstToken(nn.Module):
    """The script's trunk as one module."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, ids):
        return self.encoder(ids).last_hidden_state[:, 0]


def own_parameters(scope, balanced, accumulate):
    torch.manual_seed(0)
    model = scope["TwoHeads"]()
    trained = MultiTaskModel(FirstToken(model.encoder), {"topic": model.topic, "tone": model.tone})
    texts = {name: torch.stack([text[name] for text in scope["data"]()]) for name in ("input_ids", "topic", "tone")}
    ids, topic, tone = (values.split(16) * 2 for values in texts.values())
    batches = [(x, {"topic": a, "tone": b}) for x, a, b in zip(ids, topic, tone, strict=True)]
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3, weight_decay=0.0)
    own_run(trained, {"topic": nn.CrossEntropyLoss(), "tone": nn.MSELoss()}, batches, optimizer, balanced,
            accumulate=accumulate, max_norm=1.0)  # fmt: skip
    return parameters(model)


def look(scope):
    """Parameters of the script's training, batches in order and at a constant rate, and of the framework's own."""
    cases = {}
    for count in (1, 2):
        options = {"train_sampling_strategy": "sequential", "lr_scheduler_type": "constant", "disable_tqdm": True}
        found = parameters(scope["train"](gradient_accumulation_steps=count, **options))
        cases[count] = found, own_parameters(scope, True, count), own_parameters(scope, False, count)
    return cases


@pytest.mark.skipif(sys.version_info < (3, 11), reason="transformers is for Python 3.11 and later")
def test_it_is_the_frameworks_own_run(tmp_path):
    printed, cases = run_example("hf_trainer", tmp_path, look)
    for count, (found, own, plain) in cases.items():
        torch.testing.assert_close(found, own, rtol=0, atol=1e-9, msg=lambda words, n=count: f"{n} batches: {words}")
        assert (found - plain).abs().max() > 1e-5, count  # the control: without the rule
    assert "conflict/cos/topic~tone" in printed
    assert not list(tmp_path.iterdir())
