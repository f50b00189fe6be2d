"""Metrics against scikit-learn and loops over single pixels, accumulated over batches."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from mtl import metrics

NAN = math.nan


def accumulated(named, batches):
    for prediction, target in batches:
        for metric in named.values():
            metric.update(prediction, target)
    return {name: metric.compute().item() for name, metric in named.items()}


def split(prediction, target, sizes=(1, 3, 2)):
    return list(zip(prediction.split(list(sizes)), target.split(list(sizes)), strict=True))


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


def depth_batches():
    torch.manual_seed(1)
    prediction, target = 4 * torch.rand(6, 1, 5, 5), 0.5 + 4 * torch.rand(6, 1, 5, 5)
    target[torch.rand(target.shape) < 0.3] = 0.0
    target[0, 0, 0, 0] = NAN
    return split(prediction, target)


def depth_errors(batches):
    for prediction, target in batches:
        known = [(p, t) for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True) if t > 0]
        yield [abs(p - t) for p, t in known], [abs(p - t) / t for p, t in known]


def test_depth_in_both_conventions():
    batches = depth_batches()
    found = accumulated(metrics.depth(batch_mean=True), batches)
    absolute, relative = zip(*depth_errors(batches), strict=True)
    assert found["abs_err"] == pytest.approx(np.mean(np.concatenate(absolute)), rel=1e-5)
    assert found["rel_err"] == pytest.approx(np.mean(np.concatenate(relative)), rel=1e-5)
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(np.concatenate(absolute)))), rel=1e-5)
    assert found["abs_err_batch_mean"] == pytest.approx(np.mean([np.mean(e) for e in absolute]), rel=1e-5)
    assert found["rel_err_batch_mean"] == pytest.approx(np.mean([np.mean(e) for e in relative]), rel=1e-5)
    assert found["abs_err"] != pytest.approx(found["abs_err_batch_mean"], rel=1e-3)
    assert set(metrics.depth()) == {"abs_err", "rel_err", "rmse"}


def test_a_regression_takes_every_number_but_nan():
    target = torch.tensor([[0.0, 2.0], [NAN, -1.0]])
    found = accumulated(metrics.regression(), [(torch.ones(2, 2), target)])
    assert found == {"abs_err": pytest.approx(4 / 3), "rmse": pytest.approx(math.sqrt(2))}


def normal_batches():
    torch.manual_seed(2)
    target = torch.nn.functional.normalize(torch.randn(6, 3, 7, 7), dim=1)
    prediction = 3 * (target + 0.4 * torch.randn(6, 3, 7, 7) * torch.rand(6, 1, 1, 1))
    target[:, :, 3, 4] = 0.0
    target[5, :, 2] = 0.0
    return split(prediction, target)


def angles(batches):
    for prediction, target in batches:
        p, t = (x.movedim(1, -1).reshape(-1, 3).double().numpy() for x in (prediction, target))
        p, t = p[np.abs(t).sum(1) > 0], t[np.abs(t).sum(1) > 0]
        cosine = (p * t).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(t, axis=1)
        yield np.degrees(np.arccos(cosine.clip(-1, 1)))


def test_normals_in_both_conventions():
    batches = normal_batches()
    found = accumulated(metrics.normals(batch_mean=True), batches)
    by_batch = list(angles(batches))
    every = np.concatenate(by_batch)
    assert found["angle_mean"] == pytest.approx(every.mean(), rel=1e-5)
    lower = np.sort(every)[(len(every) - 1) // 2]
    assert abs(found["angle_median"] - lower) <= 0.01
    assert found["angle_mean_batch_mean"] == pytest.approx(np.mean([a.mean() for a in by_batch]), rel=1e-5)
    medians = [np.sort(a)[(len(a) - 1) // 2] for a in by_batch]
    assert found["angle_median_batch_mean"] == pytest.approx(np.mean(medians), rel=1e-4)
    for limit in (11.25, 22.5, 30):
        assert found[f"within_{limit}"] == pytest.approx((every < limit).mean(), rel=1e-5)
        assert found[f"within_{limit}_batch_mean"] == pytest.approx(np.mean([(a < limit).mean() for a in by_batch]))
    assert abs(found["angle_median"] - found["angle_median_batch_mean"]) > 0.01
    assert len(found) == 10 and set(metrics.normals()) == {name for name in found if "batch" not in name}


def test_the_median_of_a_few_angles():
    for degrees in ([10.0], [10.0, 40.0], [180.0, 0.0, 90.0], [5.0] * 4 + [179.0]):
        radians = torch.tensor(degrees).deg2rad()
        prediction = torch.stack([radians.cos(), radians.sin(), torch.zeros_like(radians)])[None, :, None]
        target = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(prediction.shape)
        metric = metrics.MedianAngle()
        metric.update(prediction, target)
        assert metric.compute().item() == pytest.approx(sorted(degrees)[(len(degrees) - 1) // 2], abs=0.011)


def test_small_angles_are_not_rounded_and_no_direction_is_a_right_angle():
    target = torch.tensor([0.6, 0.0, 0.8])[None, :, None, None]
    tilted = target + torch.tensor([0.8, 0.0, -0.6])[None, :, None, None] * 1e-5
    assert metrics.angle(tilted, target).item() == pytest.approx(math.degrees(1e-5), rel=0.05)
    assert metrics.angle(torch.zeros_like(target), target).item() == 90


def test_attributes_count_what_has_a_label():
    torch.manual_seed(3)
    logits, target = torch.rand(6, 4) * 2 - 0.5, (torch.rand(6, 4) < 0.5).float()  # one batch is all within 0 and 1
    logits[0].clamp_(0, 1)
    target[2, 1] = target[4, 3] = NAN
    known = ~target.isnan()
    single = accumulated(metrics.attributes(), split(logits, target))
    y, p = target[known].numpy(), (logits[known] > 0).numpy()
    assert single == {
        "f1": pytest.approx(sk.f1_score(y, p)),
        "accuracy": pytest.approx(sk.accuracy_score(y, p)),
    }
    several = accumulated(metrics.attributes(4), split(logits, target))
    columns = [(target[:, i][known[:, i]].numpy(), (logits[:, i][known[:, i]] > 0).numpy()) for i in range(4)]
    assert several["f1"] == pytest.approx(np.mean([sk.f1_score(y, p) for y, p in columns]))
    assert several["accuracy"] == pytest.approx(np.mean([sk.accuracy_score(y, p) for y, p in columns]))
    assert several["f1"] != pytest.approx(single["f1"], rel=1e-3)


def test_the_best_threshold_is_one_for_the_set():
    torch.manual_seed(4)
    logits, target = torch.randn(6, 1, 9, 9), (torch.rand(6, 1, 9, 9) < 0.2).float()
    logits += target - torch.arange(6.0).view(6, 1, 1, 1) / 2
    target[1, 0, :2] = NAN
    found = accumulated(metrics.saliency(), split(logits, target))
    known = ~target.isnan()
    y, p = target[known].numpy(), logits.sigmoid()[known].numpy()
    scores = [(sk.f1_score(y, p >= t), sk.jaccard_score(y, p >= t)) for t in np.linspace(0, 1, 101)]
    assert found["max_f"] == pytest.approx(max(f for f, _ in scores))
    assert found["max_iou"] == pytest.approx(max(j for _, j in scores))
    assert found["max_f"] > 1.1 * sk.f1_score(y, p >= 0.5)
    assert list(metrics.edges()) == ["max_f"]


def test_every_metric_says_which_way_is_better():
    kinds = [
        metrics.classification(3), metrics.segmentation(3), metrics.depth(batch_mean=True), metrics.regression(),
        metrics.normals(batch_mean=True), metrics.attributes(), metrics.attributes(3),
        metrics.edges(), metrics.saliency(), metrics.probabilities(2), metrics.ranking(2), metrics.counts([""]),
        metrics.determination([""]),
    ]  # fmt: skip
    for named in kinds:
        for name, metric in named.items():
            error = "err" in name or name.startswith(("angle", "rmse", "log_loss"))
            assert metric.higher_is_better is not error, name


def test_states_of_two_processes_add_up():
    """Every state has the reduction sum, so that what two ranks saw is what one would have seen."""
    depths, normals = depth_batches(), normal_batches()
    binary = [(torch.randn(2, 3), torch.ones(2, 3)), (torch.randn(2, 3), torch.tensor([[0.0, 1, NAN]] * 2))]
    maps = [(torch.randn(2, 4, 3, 3), torch.randint(4, (2, 3, 3))) for _ in range(2)]
    kinds = [
        (metrics.depth(batch_mean=True), depths),
        (metrics.normals(batch_mean=True), normals),
        (metrics.segmentation(4), maps),
        (metrics.attributes(), binary),
        (metrics.attributes(3), binary),
        (metrics.saliency(), binary),
    ]
    for named, batches in kinds:
        for name, metric in named.items():
            other = copy.deepcopy(metric)
            metric.update(*batches[0])
            other.update(*batches[1])
            alone = metric.compute().item()
            for state, reduction in metric._reductions.items():
                setattr(metric, state, reduction(torch.stack([getattr(metric, state), getattr(other, state)])))
            metric._computed = None
            together = metric.compute().item()
            metric.reset()
            metric.update(*batches[0])
            metric.update(*batches[1])
            assert together == pytest.approx(metric.compute().item(), rel=1e-6), name
            assert together != pytest.approx(alone, rel=1e-6), name


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


def test_masked_means_refuse_shapes_that_torch_would_broadcast():
    with pytest.raises(ValueError, match=r"prediction \[4, 1\] and target \[4\] differ in shape"):
        metrics.regression()["abs_err"].update(torch.zeros(4, 1), torch.zeros(4))


def updated(named, prediction, target, size=7):
    for metric in named.values():
        for p, t in zip(prediction.split(size), target.split(size), strict=True):
            metric.update(p, t)
    return {name: metric.compute().item() for name, metric in named.items()}


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


def test_a_ranking_is_the_mean_over_the_labels_that_have_both_values():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(60, 3, generator=generator)
    target = (torch.rand(60, 3, generator=generator) < 0.4).float()
    target[::4, 0], target[:, 2] = NAN, 1.0
    found = updated(metrics.ranking(3), logits, target)
    known = [~target[:, i].isnan() for i in (0, 1)]
    areas = [sk.roc_auc_score(target[k, i], logits[k, i]) for i, k in enumerate(known)]
    precisions = [sk.average_precision_score(target[k, i], logits[k, i]) for i, k in enumerate(known)]
    expected = {"auc": np.mean(areas), "average_precision": np.mean(precisions)}
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("value", [0, 1, -100])
def test_a_ranking_without_both_values_is_no_number(value):
    found = updated(metrics.probabilities(2), torch.randn(10, 2), torch.full((10,), value))
    assert math.isnan(found["auc"]) and math.isnan(found["average_precision"])


def test_determination_and_counts_are_scikit_learns():
    generator = torch.Generator().manual_seed(2)
    logs = torch.randn(50, 2, generator=generator)
    target = torch.poisson(logs.exp(), generator=generator)
    target[::6, 0] = NAN
    found = updated(metrics.counts(["_a", "_b"]), logs, target)
    plain = updated(metrics.determination(["_a", "_b"]), logs, target)
    for i, name in enumerate("ab"):
        known = ~target[:, i].isnan()
        y, p = target[known, i].double().numpy(), logs[known, i].double().exp().numpy()
        assert found[f"r2_{name}"] == pytest.approx(sk.r2_score(y, p), rel=1e-6)
        assert found[f"abs_err_{name}"] == pytest.approx(sk.mean_absolute_error(y, p), rel=1e-5)
        assert found[f"rmse_{name}"] == pytest.approx(math.sqrt(sk.mean_squared_error(y, p)), rel=1e-5)
        assert plain[f"r2_{name}"] == pytest.approx(sk.r2_score(y, logs[known, i].double().numpy()), rel=1e-6)
    assert math.isnan(updated(metrics.determination([""]), logs[:1], target[1:2])["r2"]), "of one number"
