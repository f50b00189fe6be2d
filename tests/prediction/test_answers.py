"""What an output means: against formulas in NumPy, by kind, loss and target."""

import numpy as np
import pytest
import torch
from torch import nn

from mtl.losses import Focal, MaskedBCE, MaskedL1, MaskedPoisson, TokenCrossEntropy
from mtl.prediction.answers import Answer, answer_of

LOGITS = torch.tensor([[0.0, np.log(3.0), 0.0], [2.0, 0.0, 0.0]])


def test_a_class_by_its_name_with_its_probability():
    answer = Answer("class", ("a", "b", "c"))
    scores = answer.scores(LOGITS)
    assert np.allclose(scores[0], [0.2, 0.6, 0.2])
    said = answer.say(scores[0])
    assert said["class"] == "b" and said["probability"] == pytest.approx(0.6)
    assert list(said["probabilities"]) == ["a", "b", "c"]
    assert answer.cells("t", scores[1])["t"] == "a"
    assert list(answer.cells("t", scores[0], every=True)) == [
        "t", "t_probability", "t_probability_a", "t_probability_b", "t_probability_c",
    ]  # fmt: skip
    spread = answer.cells("t", scores[0], np.array([0.1, 0.2, 0.3]))
    assert spread["t_spread"] == 0.2, "of the class that is named"


def test_labels_are_probabilities_by_name():
    answer = Answer("labels", ("tame", "spotted"))
    scores = answer.scores(torch.tensor([[0.0, np.log(3.0)]]))
    assert answer.say(scores[0]) == pytest.approx({"tame": 0.5, "spotted": 0.75})
    assert answer.cells("t", scores[0]) == pytest.approx({"t_probability_tame": 0.5, "t_probability_spotted": 0.75})
    one = Answer("labels")
    assert one.cells("Young", one.scores(torch.zeros(1, 1))[0]) == {"Young_probability": 0.5}
    assert Answer("labels", logits=False).say(np.array([0.25])) == 0.25, "torch.nn.BCELoss takes probabilities"


def test_numbers_are_in_their_own_units():
    answer = Answer("value", ("age", "mass"), ((10.0, 1000.0), (2.0, 250.0)), "kg")
    scores = answer.scores(torch.tensor([[1.0, -2.0]]))
    assert answer.say(scores[0]) == {"age": 12.0, "mass": 500.0}
    assert answer.cells("t", scores[0], scores[0] / 10) == pytest.approx(
        {"t_age": 12.0, "t_mass": 500.0, "t_spread_age": 1.2, "t_spread_mass": 50.0}
    )
    assert Answer("value", scale=((3.0,), (2.0,))).say(np.array([7.0])) == 7.0
    assert Answer("value", scale=((3.0,), (2.0,))).scores(torch.tensor([2.0])).tolist() == [[7.0]], "[B] is [B, 1]"


def test_maps_are_arrays():
    logits = torch.randn(2, 4, 3, 5)
    segmentation = Answer("segmentation", tuple("abcd"))
    assert np.array_equal(segmentation.say(segmentation.scores(logits)[1]), logits[1].argmax(0).numpy())
    depth = Answer("depth", scale=(3.0, 2.0))
    assert np.allclose(depth.say(depth.scores(logits[:, :1])[0]), logits[0, 0].double().numpy() * 2 + 3)
    normals = Answer("normals").scores(logits[:, :3])
    assert np.allclose(np.square(normals).sum(1), 1, atol=1e-5)
    mask = Answer("mask").say(Answer("mask").scores(logits[:, :1])[0])
    assert mask.shape == (3, 5) and np.allclose(mask, 1 / (1 + np.exp(-logits[0, 0].numpy())), atol=1e-6)


FLOAT, WHOLE = "float32", "int64"


@pytest.mark.parametrize(
    ("shown", "output", "loss", "target", "kind"),
    [
        ("class", [2, 3], nn.CrossEntropyLoss(), ([2], WHOLE), "class"),
        ("class", [2, 3], nn.CrossEntropyLoss(), ([2, 3], FLOAT), "class"),
        ("class", [2, 3], nn.BCEWithLogitsLoss(), ([2, 3], FLOAT), "labels"),
        ("class", [2, 1], MaskedBCE(), ([2, 1], FLOAT), "labels"),
        ("class", [2, 1], Focal(), ([2, 1], FLOAT), "labels"),
        ("class", [2, 3], Focal(), ([2], WHOLE), "class"),
        (None, [2, 3], nn.CrossEntropyLoss(), ([2], WHOLE), "class"),
        (None, [2], nn.MSELoss(), ([2], FLOAT), "value"),
        ("value", [2, 4], nn.MSELoss(), ([2, 4], FLOAT), "value"),
        ("value", [2, 1], nn.BCEWithLogitsLoss(), ([2, 1], FLOAT), "labels"),
        ("segmentation", [2, 3, 4, 4], nn.CrossEntropyLoss(), ([2, 4, 4], WHOLE), "segmentation"),
        (None, [2, 3, 4, 4], nn.CrossEntropyLoss(), ([2, 4, 4], WHOLE), "segmentation"),
        ("depth", [2, 1, 4, 4], MaskedL1(), ([2, 1, 4, 4], FLOAT), "depth"),
        ("mask", [2, 1, 4, 4], nn.BCEWithLogitsLoss(), ([2, 1, 4, 4], FLOAT), "mask"),
        (None, [2, 5, 300], TokenCrossEntropy(), ([2, 5], WHOLE), "output"),
        (None, [2, 3], nn.MSELoss(), ([2], WHOLE), "output"),
    ],
)  # fmt: skip
def test_the_loss_and_the_target_say_what_an_output_is(shown, output, loss, target, kind):
    description = {
        "sample": {"targets": {"t": dict(zip(("shape", "dtype"), target, strict=True))}},
        "kinds": {} if shown is None else {"t": shown}, "class_names": {}, "scales": {}, "units": {},
    }  # fmt: skip
    assert answer_of("t", torch.zeros(output), loss, description).kind == kind


@pytest.mark.parametrize(
    ("kind", "loss", "score"),
    [
        ("class", nn.BCEWithLogitsLoss(), 0.5), ("class", nn.BCELoss(), 0.0), ("value", MaskedPoisson(), 1.0),
        ("value", nn.PoissonNLLLoss(), 1.0), ("value", nn.PoissonNLLLoss(log_input=False), 0.0),
        ("value", nn.MSELoss(), 0.0),
    ],
    ids=["logits", "probabilities", "counts", "torch's counts", "torch's counts as they are", "numbers"],
)  # fmt: skip
def test_the_loss_says_what_an_output_of_zero_means(kind, loss, score):
    description = {
        "sample": {"targets": {"t": {"shape": [2, 1], "dtype": FLOAT}}}, "kinds": {"t": kind}, "class_names": {},
        "scales": {}, "units": {},
    }  # fmt: skip
    assert answer_of("t", torch.zeros(2, 1), loss, description).scores(torch.zeros(2, 1)).tolist() == [[score]] * 2


def test_a_head_of_another_form_is_given_as_it_is():
    description = {"sample": {"targets": {}}, "kinds": {}, "class_names": {}, "scales": {}, "units": {}}
    answer = answer_of("t", {"a": torch.zeros(2, 1)}, nn.MSELoss(), description)
    assert answer.kind == "output" and answer.scores({"a": torch.ones(2, 1)})["a"].tolist() == [[1], [1]]
