"""Every strategy with every weighting trains the digits, and goes on after a state round trip to the last bit."""

from pathlib import Path

import pytest
import torch
from support.composing import configuration, options
from support.exactness import same
from support.going_on import built_from, goes_on, stored, take_steps

from mtl.errors import ConfigError

STRATEGIES, WEIGHTINGS = options("strategy"), options("weighting")
SETTING = [
    "~backbone", "+backbone._target_=support.networks.Tiny", "data.image_size=8", "data.batch_size=8",
    "+head@heads.sum=linear", "heads.sum.out_features=19", "+losses.sum._target_=torch.nn.CrossEntropyLoss",
    "trainer.max_steps=10", "trainer.limit_train_batches=3", "scheduler=constant",
]  # fmt: skip


# Future tokens: heads with a shared unembedding, on slices of the positions.
TOKENS = [
    "data=stdlib", f"data.path={Path(__file__)}", "data.context=12", "data.batch_size=4",
    "backbone.width=8", "backbone.depth=1", "heads=next_2", "heads.next_1.layer=transformer", "share=[unembedding]",
    "trainer.max_steps=10", "trainer.limit_train_batches=2", "scheduler=constant", "device=cpu",
]  # fmt: skip


def built(*overrides):
    return built_from(configuration(*SETTING, *overrides))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_trains_and_goes_on_to_the_last_bit(strategy, weighting):
    if strategy in ("auto_lambda", "modo", "pareto_manifold") and weighting != "equal":
        with pytest.raises(ConfigError, match="finds the tasks' weights itself: it needs weighting=equal, not "):
            built(f"strategy={strategy}", f"weighting={weighting}")
        return
    rotations = ["architecture=rotograd"] if strategy == "rotograd" else []
    # Of the hard maximum only the task with the largest loss learns in a step, and with it its rotation.
    every = (strategy, weighting) != ("rotograd", "tchebycheff")
    goes_on(configuration(*SETTING, f"strategy={strategy}", f"weighting={weighting}", *rotations), every)


# A weighting of each kind: known before the heads run, by the loss itself, late.
PAIRS = [("detached", w) for w in WEIGHTINGS] + [
    (s, w) for s in ("naive", "mgda", "graddrop", "moco") for w in ("equal", "log", "famo")
]


@pytest.mark.parametrize(("strategy", "weighting"), PAIRS)
def test_tokens_train_and_go_on_to_the_last_bit(strategy, weighting):
    cfg = configuration(*TOKENS, f"strategy={strategy}", f"weighting={weighting}")
    if strategy != "naive":
        cfg.strategy.token_chunks = 3
    goes_on(cfg)


@pytest.mark.parametrize("option", ["space=features_sum", "space=parameters", "every=3", "head_scale=weights"])
def test_the_options_of_balancing_on_tokens(option):
    goes_on(configuration(*TOKENS, "strategy=pcgrad", f"strategy.{option}", "strategy.token_chunks=3"))


def test_a_lost_state_is_seen():
    """Negative control: GradVac's averages, left out of what is loaded, change the parameters."""
    ends = []
    for lose in (False, True):
        data, state = built("strategy=gradvac")
        take_steps(data, state, range(2))
        middle = stored(state)
        if lose:
            middle["strategy"] = {k: v if "rule" not in k or v.dtype != torch.float64 else v + 0.5
                                  for k, v in middle["strategy"].items()}  # fmt: skip
        state.load_state_dict(middle)
        take_steps(data, state, range(2, 6))
        ends.append(stored(state)["model"])
    assert not same(*ends)


PARAMETERS = "strategy.space=parameters"
KEEPING = {
    "smoothing": ["strategy=mgda", "strategy.smoothing=0.9"],
    "smoothing every": ["strategy=nash_mtl", "strategy.smoothing=0.5", "strategy.every=2"],
    "part": ["strategy=gradvac", PARAMETERS, "strategy.part=1.weight"],
    "preference": ["strategy=upgrad", "+strategy.rule.preference.left=2"],
    "preference of a ray": ["strategy=epo", "+strategy.rule.preference.left=2"],
    "groups": ["strategy=gradvac", PARAMETERS, "strategy.groups=layer"],
    "groups of rows": ["strategy=moco", "strategy.groups=[1.weight]"],
    "groups smoothing every": [
        "strategy=mgda", PARAMETERS, "strategy.groups=block", "strategy.smoothing=0.5", "strategy.every=2"
    ],
    "weighting's preference": ["strategy=detached", "weighting=tchebycheff", "+weighting.preference.left=2"],
}  # fmt: skip


@pytest.mark.parametrize("name", KEEPING)
def test_the_options_with_a_state_go_on_to_the_last_bit(name):
    goes_on(configuration(*SETTING, *KEEPING[name]))


@pytest.mark.parametrize("strategy", ["mgda", "pcgrad", "nash_mtl", "cagrad"])
@pytest.mark.parametrize("option", ["space=features_sum", "space=parameters", "every=3", "head_scale=weights"])
def test_the_options_of_balancing(strategy, option):
    data, state = built(f"strategy={strategy}", f"strategy.{option}")
    take_steps(data, state, range(6))


def test_rules_of_torchjd_plug_in_by_their_name_alone():
    pytest.importorskip("torchjd")
    data, state = built("strategy=mgda", "strategy.rule._target_=torchjd.aggregation.UPGradWeighting")
    take_steps(data, state, range(4))
    assert type(state.strategy.rule).__module__.startswith("torchjd")


def test_parameter_space_needs_parameters():
    with pytest.raises(ConfigError, match=r"strategy.space=parameters: the backbone has no parameter to train"):
        built("strategy=mgda", "strategy.space=parameters", "backbone._target_=support.networks.Frozen")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["strategy=cagrad", "strategy.rule.c=-1"], "strategy.rule: c=-1"),
        (["strategy=fairgrad", "strategy.rule.alpha=x"], "strategy.rule.alpha=x has the wrong type"),
        (["strategy=mgda", "+strategy.rule.beta=1"], "strategy.rule.beta is not an argument of mtl.rules.MGDA"),
        (["strategy=mgda", "strategy.space=weights"], "strategy: space=weights must be one of features, features_sum"),
        (["strategy=graddrop", "strategy.every=2"], "strategy: GradDrop works on the rows themselves: it needs"),
        (["strategy=mgda", "strategy.every=0"], "strategy: every=0 must be 1 or more"),
        (["strategy=mgda", "+strategy.evry=2"], "strategy.evry is not an argument of mtl.strategies.Balanced; did"),
        (["weighting=dwa", "weighting.temperature=0"], "weighting: temperature=0"),
        (["weighting=gradnorm", "weighting.alpha=-1"], "weighting: alpha=-1"),
    ],
)
def test_a_mistake_in_balancing_is_named(overrides, message):
    with pytest.raises(ConfigError) as caught:
        built(*overrides)
    assert message in str(caught.value)
