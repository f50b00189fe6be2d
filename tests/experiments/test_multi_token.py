"""The study of multi-token prediction: its decoding, its bounds, and that each of its commands runs."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mtl.backbones import CausalTransformer
from mtl.config import load
from mtl.heads import NextToken
from mtl.model import MultiTaskModel
from mtl.runs.files import read_metrics

STUDY = Path(__file__).parents[2] / "experiments" / "multi_token"
TINY = [f"data.path={Path(__file__)}", "data.context=16", "backbone.width=16", "device=cpu"]
TINY += ["trainer.max_steps=12", "trainer.val_every=6", "trainer.limit_val_batches=2"]


@pytest.fixture
def study(monkeypatch):
    """The study's modules, which import each other by their names."""
    monkeypatch.syspath_prepend(str(STUDY))
    for name in ("decoding", "memory", "quality", "step_time"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def module(name):
        return __import__(name)

    yield module
    for name in ("decoding", "memory", "quality", "step_time"):
        sys.modules.pop(name, None)


def random_model(heads, layer="mlp", context=10, vocabulary=7):
    """Strong random weights: every prompt goes on in a way of its own."""
    made = {f"next_{k}": NextToken(8, vocabulary, layer, num_heads=2) for k in range(1, heads + 1)}
    model = MultiTaskModel(CausalTransformer(vocabulary, context, 8, 2, 2), made)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.5)
    for embedding in (model.backbone.positions, model.backbone.tokens.weight):
        nn.init.normal_(embedding)
    return model


@pytest.mark.parametrize("layer", ["mlp", "transformer"])
@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_speculative_decoding_gives_the_text_of_greedy_decoding(study, heads, layer):
    """Over several moves of the window, and by heads that draft nonsense."""
    torch.manual_seed(heads)
    decoder = study("decoding").Decoder(random_model(heads, layer), context=10)
    texts = set()
    for prompt in torch.randint(7, (4, 3)).tolist():
        plain, found = decoder.greedy(prompt, 40), decoder.speculative(prompt, 40)
        assert found.tokens == plain and len(plain) == 40
        assert found.passes + found.accepted == 40 and found.accepted <= found.drafted <= found.passes * (heads - 1)
        texts.add(tuple(plain))
    assert len(texts) > 1 and len(set().union(*texts)) > 1


def test_heads_that_draft_well_save_passes(study):
    """A text that counts up: every head knows the token so many places ahead from the present one alone."""

    class Counting(nn.Module):
        def __init__(self, ahead):
            super().__init__()
            self.ahead = ahead

        def forward(self, z):
            return z.roll(self.ahead, -1)

    class Shown(nn.Module):
        def forward(self, tokens):
            return nn.functional.one_hot(tokens, 7).double()

    heads = {f"next_{k}": Counting(k if k < 4 else k + 1) for k in range(1, 5)}  # the last one is wrong
    decoder = study("decoding").Decoder(MultiTaskModel(Shown(), heads), context=1000)
    found = decoder.speculative([0], 60)
    assert found.tokens == [(i + 1) % 7 for i in range(60)]
    assert found.passes == 1 + -(-59 // 3)  # one token, then two drafted ones that are right and the next one
    assert found.accepted / found.drafted == pytest.approx(2 / 3, abs=0.05)


@pytest.mark.parametrize("context", [1, 2, 9, 10])
def test_a_window_ends_at_its_token_and_is_at_least_half_full(study, context):
    decoder = study("decoding").Decoder(random_model(1), context)
    for place in range(1, 50):
        length = place - decoder.start(place)
        assert length <= context and (length >= context // 2 or place < context)
    assert decoder.start(context) == 0


def test_entropies_are_those_of_frequencies(study):
    tokens = np.random.default_rng(0).integers(0, 5, 300) ** 2
    for k, (alone, given) in enumerate(study("quality").entropies(tokens, 3), 1):
        now, then = tokens[:-k], tokens[k:]
        losses = [-np.log(np.mean(then == t)) for t in then]
        conditional = [-np.log(np.mean(then[now == n] == t)) for n, t in zip(now, then, strict=True)]
        assert alone == pytest.approx(np.mean(losses)) and given == pytest.approx(np.mean(conditional))


def test_the_quality_study_runs(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    study("quality").main(["--out", str(tmp_path), "--length", "6", *TINY])
    printed = capsys.readouterr().out
    assert "| next_4 |" in printed and "the same text as by plain greedy decoding" in printed
    assert (tmp_path / "conflict.png").stat().st_size > 10_000


def test_the_memory_study_runs(study, tmp_path, monkeypatch, capsys):
    """Its peaks are those of test_memory.py; here the theory stands in for them."""
    memory = study("memory")
    kept = memory.peak("naive, list of logits", 1, 256) - memory.peak("naive", 1, 256)
    assert kept == pytest.approx(memory.logits(256), rel=1e-3)
    monkeypatch.setattr(memory, "peak", lambda name, n, vocabulary: memory.THEORY[name](n) * memory.logits(vocabulary))
    monkeypatch.setattr(sys, "argv", ["memory.py", "--out", str(tmp_path)])
    memory.main()
    printed = capsys.readouterr().out
    assert "| naive | 768 (768) | 1,024 (1,024) | 1,536 (1,536) | 2,560 (2,560) |" in printed
    assert "| naive over detached | at least 2.8 | 3.33 |" in printed and (tmp_path / "memory.png").exists()


def test_the_study_of_time_takes_a_round(study, monkeypatch):
    monkeypatch.setattr(study("memory"), "CONTEXT", 16)
    ratios, seconds = study("step_time").measure(vocabulary=50, rounds=1, batch=1)
    assert all(0.1 < ratio < 10 for ratio in ratios.values()) and seconds > 0


@pytest.mark.slow
def test_the_losses_are_within_their_bounds_after_the_whole_run(study, tmp_path):
    """Below the entropy of a byte at every head, and of a byte after the present one at the first."""
    from mtl.config.build import build_parts
    from mtl.train import train

    cfg = load(["+experiment=multi_token"])
    train(cfg, tmp_path)
    (test,) = read_metrics(tmp_path, "test")
    bounds = study("quality").entropies(build_parts(cfg).data.test.tokens.numpy(), 4)
    losses = [test[f"loss/next_{k}"] for k in range(1, 5)]
    assert losses == sorted(losses)
    assert all(loss < alone for loss, (alone, _) in zip(losses, bounds, strict=True))
    assert losses[0] < bounds[0][1]
