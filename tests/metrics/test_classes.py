"""Metrics of classes against scikit-learn, accumulated over batches."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from support.measured import accumulated, split, updated

from mtl import metrics


def test_segmentation_is_one_confusion_matrix_over_the_set():
    torch.manual_seed(0)
    logits, target = torch.randn(6, 5, 8, 8), torch.randint(4, (6, 8, 8))  # class 4 is predicted but never there
    target[torch.rand(6, 8, 8) < 0.2] = -1
    batches = split(logits, target)
    found = accumulated(metrics.segmentation(5, ignore_index=-1), batches)
    known = target >= 0
    y, p = target[known].numpy(), logits.argmax(1)[known].numpy()
    assert found["miou"] == pytest.approx(sk.jaccard_score(y, p, average="macro"), rel=1e-5)
    assert found["pixel_accuracy"] == pytest.approx(sk.accuracy_score(y, p), rel=1e-5)
    by_batch = [accumulated(metrics.segmentation(5, ignore_index=-1), [batch])["miou"] for batch in batches]
    assert found["miou"] != pytest.approx(np.mean(by_batch), rel=1e-3)


def test_a_class_that_occurs_nowhere_is_not_in_the_mean():
    target = torch.tensor([[[0, 1], [1, 1]]])
    logits = torch.nn.functional.one_hot(target, 7).permute(0, 3, 1, 2).float()
    assert accumulated(metrics.segmentation(7), [(logits, target)])["miou"] == 1


def test_classes_without_a_label_do_not_count():
    logits, target = torch.eye(3), torch.tensor([0, 2, -100])
    assert accumulated(metrics.classification(3), [(logits, target)]) == {"accuracy": 0.5}


@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_accuracy_takes_the_most_probable_class_of_a_target(shape):
    generator = torch.Generator().manual_seed(0)
    logits, soft = torch.randn(2, 40, 4, *shape, generator=generator)
    soft = soft.softmax(1)
    soft[::5] = float("nan")
    expected = (logits.argmax(1) == soft.argmax(1))[~soft.isnan().any(1)].float().mean().item()
    hard = soft.argmax(1).masked_fill(soft.isnan().any(1), -100)
    made = metrics.segmentation(4) if shape else metrics.classification(4)
    again = metrics.segmentation(4) if shape else metrics.classification(4)
    for name, metric in made.items():
        metric.update(logits, soft)
        again[name].update(logits, hard)
        torch.testing.assert_close(metric.compute(), again[name].compute())
    assert made["pixel_accuracy" if shape else "accuracy"].compute().item() == pytest.approx(expected)


def test_probabilities_are_scikit_learns():
    generator = torch.Generator().manual_seed(0)
    logits, target = 30 * torch.randn(90, 2, generator=generator), torch.randint(2, (90,), generator=generator)
    target[::5] = -100
    known = target >= 0
    p = logits.double().softmax(1)[known].numpy()
    y, margin = target[known].numpy(), (logits[:, 1] - logits[:, 0])[known].numpy()
    found = updated(metrics.probabilities(2), logits, target)
    expected = {
        "accuracy": sk.accuracy_score(y, p.argmax(1)), "auc": sk.roc_auc_score(y, margin),
        "average_precision": sk.average_precision_score(y, margin),
        "log_loss": -np.log(np.maximum(p, 1e-300))[np.arange(len(y)), y].mean(),
    }  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-6)
    assert list(metrics.probabilities(3)) == ["accuracy", "log_loss"]
