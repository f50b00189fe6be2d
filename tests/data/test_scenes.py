"""Rendered scenes against sphere tracing, and dense training on them, with missing labels too."""

import math

import numpy as np
import pytest
import torch

from mtl.config import load
from mtl.config.build import build
from mtl.data import scenes
from mtl.data.scenes import CLASSES, Scenes, borders, draw, render
from mtl.losses import IGNORED, CosineNormals, MaskedL1
from mtl.runs.files import read_metrics
from mtl.runs.terminal import only_metrics
from mtl.strategies import Detached
from mtl.train import train
from mtl.weightings import Equal

SIDE = 24
TARGETS = ("segmentation", "depth", "normals", "edges")
TINY = [
    "data=scenes", "data.image_size=16", "data.batch_size=2", "data.size=10", "tracker=jsonl", "device=cpu",
    "trainer.max_steps=3", "trainer.val_every=3", "trainer.log_every=1", "conflict.every=1", "trainer.examples=1",
]  # fmt: skip


# -------------------------------------------------------------------------------------------------- exactness


def rotated(x, z, angle):
    return x * math.cos(angle) - z * math.sin(angle), x * math.sin(angle) + z * math.cos(angle)


def distances(scene, p):
    """The distance of a point to every class's nearest surface: room planes from inside, objects from outside."""
    x, y, z = p
    half_width, height, length = scene["room"]
    found = {"floor": y, "ceiling": height - y, "wall": min(half_width - x, x + half_width, z + length, 1 - z)}
    for i in range(6):
        if not scene["present"][i]:
            continue
        cx, cz, r, tall = scene["x"][i], scene["z"][i], scene["size"][i], scene["tall"][i]
        shape = ("sphere", "box", "cylinder")[i // 2]
        if shape == "sphere":
            d = math.hypot(x - cx, y - r, z - cz) - r
        elif shape == "box":
            u, w = rotated(x - cx, z - cz, scene["angle"][i])
            q = abs(u) - 0.7 * r, abs(y - tall / 2) - tall / 2, abs(w) - 0.7 * r
            d = math.hypot(*(max(value, 0) for value in q)) + min(max(q), 0)
        else:
            q = math.hypot(x - cx, z - cz) - r, abs(y - tall / 2) - tall / 2
            d = math.hypot(*(max(value, 0) for value in q)) + min(max(q), 0)
        found[shape] = min(d, found.get(shape, math.inf))
    return found


def trace(scene, row, column, side):
    """Sphere tracing along a pixel's ray: class, depth, and normal in the camera's axes."""
    left, up = scene["turn"]
    across, down = ((2 * (k + 0.5) / side - 1) * scene["lens"] for k in (column, row))

    def to_world(v):
        x, y, z = v[0], v[1] * math.cos(up) - v[2] * math.sin(up), v[1] * math.sin(up) + v[2] * math.cos(up)
        return np.array([x * math.cos(left) + z * math.sin(left), y, -x * math.sin(left) + z * math.cos(left)])

    ray = to_world([across, -down, -1.0])
    depth, step = 0.0, 1.0
    for _ in range(3000):
        point = scene["camera"] + depth * ray
        found = distances(scene, point)
        step = min(found.values())
        if step < 1e-6:
            break
        depth += step / np.linalg.norm(ray)
    gradient = []
    for axis in np.eye(3):
        ahead, behind = (min(distances(scene, point + s * 1e-5 * axis).values()) for s in (1, -1))
        gradient.append((ahead - behind) / 2e-5)
    basis = np.stack([to_world(axis) for axis in np.eye(3)])
    return min(found, key=found.get), depth, basis @ (np.array(gradient) / np.linalg.norm(gradient))


def agreement(stretch=1.0):
    """The shares of sampled pixels whose class, depth and normal are those of sphere tracing."""
    rng = np.random.default_rng(0)
    drawn = [draw(np.random.default_rng((7, i))) for i in range(6)]
    view = render({name: np.stack([s[name] for s in drawn]) for name in drawn[0]}, SIDE)
    right = []
    for i, scene in enumerate(drawn):
        exact = {name: np.asarray(value, np.float64) for name, value in scene.items()}
        exact["size"] = exact["size"] * stretch
        for row, column in rng.integers(SIDE, size=(40, 2)):
            name, depth, normal = trace(exact, row, column, SIDE)
            own = scenes._CLASS_OF[view["surface"][i, row, column]]
            right.append(
                (
                    CLASSES[own] == name,
                    abs(view["depth"][i, row, column] - depth) < 2e-3,
                    view["normals"][i, :, row, column] @ normal > 0.9999,
                )
            )
    return np.mean(right, 0)


def test_depth_normals_and_classes_are_those_of_another_algorithm():
    assert agreement().min() > 0.98  # a ray that grazes an edge may be decided either way
    assert agreement(stretch=1.05)[1] < 0.9  # negative control: objects that are a twentieth larger


def test_every_class_is_seen_and_normals_face_the_camera():
    _, targets = Scenes(image_size=SIDE).train.batch(list(range(60)), epoch=0)
    share = torch.bincount(targets["segmentation"].flatten(), minlength=6) / targets["segmentation"].numel()
    assert share.min() > 0.02
    torch.testing.assert_close(targets["normals"].norm(dim=1), torch.ones(60, SIDE, SIDE), rtol=1e-4, atol=1e-4)
    lens = torch.tensor([draw(np.random.default_rng((0, 0, i)))["lens"].item() for i in range(60)])
    steps = 2 * (torch.arange(SIDE) + 0.5) / SIDE - 1
    ray = torch.stack(
        [
            (lens[:, None] * steps)[:, None].expand(-1, SIDE, -1),
            -(lens[:, None] * steps)[:, :, None].expand(-1, -1, SIDE),
            -torch.ones(60, SIDE, SIDE),
        ],
        1,
    )
    assert ((ray * targets["normals"]).sum(1) < 1e-3).all()
    assert targets["depth"].min() > 0.1 and targets["depth"].max() < 15


def test_edges_are_where_the_next_surface_begins():
    surface = np.random.default_rng(0).integers(3, size=(2, 5, 6))
    expected = np.zeros(surface.shape)
    for b, i, j in np.ndindex(surface.shape):
        right = j + 1 < 6 and surface[b, i, j + 1] != surface[b, i, j]
        expected[b, i, j] = right or (i + 1 < 5 and surface[b, i + 1, j] != surface[b, i, j])
    assert (borders(surface) == expected).all() and 0 < expected.mean() < 1


# ------------------------------------------------------------------------------------------------ as a data set


def test_a_scene_is_a_function_of_the_seed_the_split_and_its_number():
    data = Scenes(image_size=SIDE, size=10, seed=1)
    images, targets = data.train.batch([4, 7], epoch=0)
    again, same = Scenes(image_size=SIDE, size=10, seed=1).train.batch([7, 1, 4], epoch=3)
    assert torch.equal(images, again[[2, 0]]) and all(torch.equal(targets[t], same[t][[2, 0]]) for t in TARGETS)
    for other in (Scenes(image_size=SIDE, size=10, seed=2).train, data.val):
        assert not torch.equal(images[:1], other.batch([4], epoch=0)[0])
    assert not torch.equal(data.val.batch([1], 0)[0], data.test.batch([1], 0)[0])
    assert (len(data.train), len(data.val)) == (10, 2)
    image, target = data.train[4]  # vectorised otherwise than in a batch, on some processors
    torch.testing.assert_close(image, images[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(target["depth"], targets["depth"][0], rtol=0, atol=1e-5)


def test_the_scenes_are_the_same_whatever_the_runs_seed():
    first, second, other = (
        build(load([*TINY, *more]))[0].data.test.batch([0], 0)[0] for more in ([], ["seed=5"], ["data.seed=5"])
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_images_are_about_standardised_and_finer_ones_show_the_same():
    fine, coarse = (Scenes(image_size=side, size=40).train.batch(list(range(40)), 0) for side in (96, 32))
    assert abs(fine[0].mean()) < 0.3 and 0.7 < fine[0].std() < 1.3
    shrunk = torch.nn.functional.interpolate(fine[1]["depth"], scale_factor=1 / 3, mode="area")
    assert (shrunk - coarse[1]["depth"]).abs().median() < 0.01


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"image_size": 4}, "image_size=4 must be 8 or more"),
        ({"size": 2}, "size=2 must be 5 or more"),
    ],
)
def test_impossible_sizes_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        Scenes(**options)


# ---------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "choice",
    [
        ["strategy=naive"],
        ["strategy=mgda"],
        ["strategy=graddrop"],
        ["strategy=pcgrad", "strategy.space=parameters"],
        pytest.param(["strategy=detached", "weighting=uw"], marks=pytest.mark.slow),
        pytest.param(["strategy=nash_mtl", "strategy.space=features_sum"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_every_kind_of_strategy_trains(tmp_path, choice):
    train(load([*TINY, *choice]), tmp_path)
    (test,) = read_metrics(tmp_path, "test")
    assert {"segmentation/miou", "depth/rel_err", "normals/within_22.5"} < set(test)
    assert all(math.isfinite(value) for value in only_metrics(test).values())
    rows = read_metrics(tmp_path, "train")
    assert {"conflict/cos/segmentation~depth", "conflict/cos/depth~normals"} < set(rows[0])
    assert any(abs(row["conflict/cos/depth~normals"]) > 1e-6 for row in rows)


def test_the_experiment_has_edges_as_a_fourth_task(tmp_path):
    train(load([*TINY, "+experiment=scenes"]), tmp_path)
    (test,) = read_metrics(tmp_path, "test")
    assert 0 < test["edges/max_f"] < 1


@pytest.mark.slow
def test_the_experiment_learns(tmp_path):
    """Floors well below what it comes to, and above the mean of the training targets at each pixel (its README)."""
    train(load(["+experiment=scenes"]), tmp_path)
    (test,) = read_metrics(tmp_path, "test")
    assert test["segmentation/miou"] > 0.55 and test["segmentation/pixel_accuracy"] > 0.85
    assert test["depth/rel_err"] < 0.17 and test["normals/angle_median"] < 15 and test["edges/max_f"] > 0.35


class Gappy(Scenes):
    """Scenes with depth labels in even samples only, and normals in every third."""

    def __init__(self, **options):
        super().__init__(**options)
        for part in (self.train, self.val, self.test):
            part.batch = self._with_gaps(part.batch)

    @staticmethod
    def _with_gaps(batch):
        def gappy(indices, epoch):
            images, targets = batch(indices, epoch)
            for position, index in enumerate(indices):
                if index % 2:
                    targets["depth"][position] = math.nan if index % 4 == 1 else 0.0
                if index % 3:
                    targets["normals"][position] = 0.0
                targets["segmentation"][position, :2] = IGNORED
            return images, targets

        return gappy


GAPPY = [*TINY, "data._target_=tests.data.test_scenes.Gappy"]


def test_a_gradient_is_that_of_the_samples_that_have_a_label():
    parts, state = build(load(GAPPY))
    images, targets = parts.data.train.batch([0, 1, 2, 3, 4, 5], 0)
    task = state.tasks[1]
    assert task.name == "depth" and isinstance(task.loss, MaskedL1)
    state.model.eval()  # else batch statistics tie the samples together
    with_gaps = gradients(state.model, [task], images, targets)
    known = {name: target[::2] for name, target in targets.items()}
    torch.testing.assert_close(with_gaps, gradients(state.model, [task], images[::2], known), rtol=1e-4, atol=1e-6)
    whole = Scenes(image_size=16).train.batch([0, 1, 2, 3, 4, 5], 0)[1]
    assert (with_gaps - gradients(state.model, [task], images, whole)).abs().max() > 1e-4


def gradients(model, tasks, images, targets):
    model.zero_grad()
    Detached(Equal()).step(model, tasks, images, targets)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_absent_tasks_are_in_no_conflict_metric(tmp_path):
    more = (
        "data.batch_size=1",
        "backbone.name=test_convnext",
        "data.image_size=32",
        "trainer.max_steps=8",
        "trainer.val_every=8",
        "strategy=mgda",
    )
    train(load([*GAPPY, *more]), tmp_path)
    seen = set()
    for row in read_metrics(tmp_path, "train"):
        present = frozenset(name for name in ("depth", "normals", "segmentation") if f"loss/{name}" in row)
        seen.add(present)
        assert ("conflict/cos/depth~normals" in row) == ({"depth", "normals"} <= present)
        assert ("conflict/cos/segmentation~depth" in row) == ("depth" in present)
    assert len(seen) > 2 and all("segmentation" in present for present in seen)
    assert all(math.isfinite(x) for row in read_metrics(tmp_path, "train") for x in only_metrics(row).values())


def test_an_evaluation_is_over_what_has_a_label():
    from mtl.training.evaluation import evaluate
    from mtl.training.loaders import eval_batches

    cfg = load([*GAPPY, "data.size=35"])
    parts, state = build(cfg)
    found = evaluate(parts.engine, eval_batches(parts.data, "val", cfg, parts.tasks), parts.device)
    images, targets = parts.data.val.batch(list(range(7)), 0)
    with torch.no_grad():
        predictions = state.model.eval()(images)
    errors = (predictions["depth"] - targets["depth"]).abs()[::2]  # samples 0, 2, 4 and 6
    assert found["depth/abs_err"] == pytest.approx(errors.mean().item(), rel=1e-4)
    assert found["loss/depth"] == pytest.approx(errors.mean().item(), rel=1e-4)
    third = CosineNormals()(predictions["normals"][::3], targets["normals"][::3]).item()
    assert found["loss/normals"] == pytest.approx(third, rel=1e-4)
    right = (predictions["segmentation"].argmax(1) == targets["segmentation"])[:, 2:].float().mean().item()
    assert found["segmentation/pixel_accuracy"] == pytest.approx(right, rel=1e-4)
