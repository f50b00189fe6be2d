"""Common behaviour of all data sets of files, on their fixtures: training, splits, messages for missing files."""

import inspect
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from support.exactness import assert_same, left_by, same

from mtl.config import CONF, load
from mtl.config.build import build
from mtl.data.celeba import CelebA
from mtl.data.cityscapes import Cityscapes
from mtl.data.image_table import ImageTable
from mtl.data.loader import Batches, DataError, sequential
from mtl.data.multimnist import MultiMNIST
from mtl.data.nyuv2 import NYUv2
from mtl.data.pascal_context import PascalContext
from mtl.data.taskonomy import Taskonomy
from mtl.errors import ConfigError
from mtl.evaluate import evaluate_checkpoint
from mtl.system.signals import Preempted
from mtl.train import train

CLASSES = {
    "nyuv2": NYUv2, "cityscapes": Cityscapes, "celeba": CelebA, "multimnist": MultiMNIST, "taskonomy": Taskonomy,
    "pascal_context": PascalContext, "image_table": ImageTable,
}  # fmt: skip
SIZES = {"celeba": 16, "taskonomy": 16, "pascal_context": 28, "image_table": 16}
NAMES = sorted(CLASSES)
STRATEGIES = {
    "naive": ["strategy=naive"],
    "detached": ["strategy=detached"],
    "a Gram rule": ["strategy=mgda"],
    "a rows rule": ["strategy=graddrop"],
    "parameters": ["strategy=cagrad", "strategy.space=parameters"],
}


@cache
def composed(name, *overrides):
    size = [f"data.image_size={SIZES[name]}"] if name in SIZES else []
    return load([f"data={name}", "data.batch_size=2", *size, "device=cpu", *overrides])


def configuration(name, root, *overrides):
    cfg = composed(name, *overrides).copy()
    cfg.data.root = str(root)
    return cfg


def made(name, root, **arguments):
    size = {"image_size": SIZES[name]} if name in SIZES else {}
    return CLASSES[name](str(root), **size, **arguments)


def take_steps(cfg, count=2):
    parts, state = build(cfg)
    before = [p.detach().clone() for p in state.model.parameters()]
    labels = {task.name: task.labels for task in state.tasks if task.labels is not None}
    for inputs, targets in Batches(parts.data.train, sequential(len(parts.data.train), 2, count), 0, labels=labels):
        state.optimizer.zero_grad()
        result = state.strategy.step(state.model, state.tasks, inputs, targets)
        assert all(torch.isfinite(loss) for loss in result.losses.values())
        state.optimizer.step()
    moved = [not torch.equal(p, q) for p, q in zip(before, state.model.parameters(), strict=True)]
    assert sum(moved) > 0.5 * len(moved)
    return parts, state


@pytest.mark.parametrize("name", NAMES)
def test_it_trains(fixture_root, name):
    parts, state = take_steps(configuration(name, fixture_root(name)))
    assert set(parts.data.targets) == {task.name for task in state.tasks} or name == "multimnist"
    assert set(parts.data.kinds) == set(parts.data.targets)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", NAMES)
def test_it_trains_under_every_kind_of_strategy(fixture_root, name, strategy):
    take_steps(configuration(name, fixture_root(name), *STRATEGIES[strategy]))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nyuv2_trains_under_every_kind_of_strategy(fixture_root, strategy):
    take_steps(configuration("nyuv2", fixture_root("nyuv2"), *STRATEGIES[strategy]))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_run_and_its_evaluation(fixture_root, tmp_path, name):
    options = ["trainer.max_steps=2", "tracker=jsonl"]
    train(configuration(name, fixture_root(name), *options), tmp_path / "run")
    (row,) = [row for row in left_by(tmp_path / "run")[1] if row["split"] == "test"]
    again = evaluate_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt", "test")
    assert {key: value for key, value in row.items() if key in again} == again and len(again) > 2
    assert (tmp_path / "run" / "examples" / "examples.json").is_file(), "its kinds of targets can be drawn"


def identity(data, split):
    """The items of a split, without augmentation."""
    dataset = getattr(data, split)
    if isinstance(data, MultiMNIST):
        return [tuple(scan.flatten().tolist()) for scan in dataset._scans]
    if isinstance(data, CelebA | ImageTable):
        return [name for name, _ in dataset._items]  # beside its labels
    return list(dataset._items)


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_disjoint_and_always_the_same(fixture_root, name):
    first, second = (made(name, fixture_root(name)) for _ in range(2))
    parts = [identity(first, split) for split in ("train", "val", "test")]
    assert all(parts) and all(len(set(part)) == len(part) for part in parts)
    assert not set(parts[0]) & set(parts[1]) and not set(parts[0]) & set(parts[2]) and not set(parts[1]) & set(parts[2])
    assert parts == [identity(second, split) for split in ("train", "val", "test")]
    for split in ("val", "test"):
        assert same(getattr(first, split)[0], getattr(second, split)[0])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("celeba", "image_table")])
def test_a_share_of_the_training_samples_is_held_out_or_none(fixture_root, name):
    root = fixture_root(name)
    third, published = made(name, root, validation=1 / 3), made(name, root, validation=0.0)
    # taskonomy's share is one of whole buildings
    assert len(third.val) == pytest.approx((len(third.train) + len(third.val)) / 3, abs=1)
    assert len(published.train) == len(third.train) + len(third.val)
    assert identity(published, "val") == identity(published, "test") == identity(third, "test")
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"validation={share} must be from 0 \(val is the test split, as"):
            made(name, root, validation=share)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_without_the_layout_is_named_with_what_is_missing_and_where_to_get_it(tmp_path, name):
    with pytest.raises(ConfigError) as caught:
        build(configuration(name, tmp_path))
    message = str(caught.value)
    assert message.startswith(f"data: root={tmp_path}: {tmp_path} lacks ") and "\n" not in message
    assert "--make-fixture DIR" in message or name == "image_table"
    with pytest.raises(ValueError, match=rf"root={tmp_path}/no: there is no folder {tmp_path}/no: "):
        made(name, tmp_path / "no")
    with pytest.raises(ConfigError, match=r"data.root has no value: give it one, as in data.root="):
        build(load([f"data={name}"]))


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_make_no_sense_are_named(fixture_root, name):
    with pytest.raises(ValueError, match=r"batch_size=0 must be 1 or more"):
        made(name, fixture_root(name), batch_size=0)
    if "image_size" in inspect.signature(CLASSES[name]).parameters:
        with pytest.raises(ValueError, match=r"image_size=0 must be (a whole number of )?1 or more"):
            CLASSES[name](str(fixture_root(name)), image_size=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_command_writes_the_fixture_and_never_over_something(tmp_path, name):
    command = [sys.executable, "-m", f"mtl.data.{name}", "--make-fixture", str(tmp_path / "tiny")]
    run = dict(capture_output=True, text=True, cwd=Path(__file__).parents[2])
    first = subprocess.run(command, **run)
    assert first.returncode == 0 and f"mtl-train data={name} data.root={tmp_path / 'tiny'}" in first.stdout
    take_steps(configuration(name, tmp_path / "tiny"), 1)
    second = subprocess.run(command, **run)
    assert second.returncode == 2 and "tiny is not empty: give a new folder." in second.stderr


# ------------------------------------------------------------------------------ augmentation and the loader


def images(root, workers, epoch, augment=True, seed=0):
    keys = [(epoch, key) for _, key in sequential(9, 4)]
    data = NYUv2(str(root), augment=augment)
    return torch.cat([inputs for inputs, _ in Batches(data.train, keys, seed, workers)])


def test_augmentation_is_a_function_of_seed_epoch_and_sample(fixture_root):
    root = fixture_root("nyuv2")
    torch.manual_seed(5)
    first = images(root, 0, epoch=3)
    assert torch.equal(first, images(root, 2, epoch=3))
    assert not torch.equal(first, images(root, 0, epoch=4)) and not torch.equal(first, images(root, 0, 3, seed=1))
    plain = images(root, 0, 3, augment=False)
    changed = [not torch.equal(a, b) for a, b in zip(first, plain, strict=True)]
    assert any(changed) and torch.equal(plain, images(root, 0, 4, augment=False))


def test_a_run_with_augmentation_is_resumed_to_the_last_bit(fixture_root, tmp_path):
    def run(folder, *overrides, stop_at=None):
        options = ["trainer.max_steps=6", "trainer.val_every=3", "trainer.log_every=1", "tracker=jsonl", *overrides]
        options += ["~backbone", "+backbone._target_=support.data_parts.Trunk"]
        options += [f"heads.{task}.width=8" for task in ("segmentation", "depth", "normals")]
        cfg = configuration("nyuv2", fixture_root("nyuv2"), *options)
        answers = iter([False] * (stop_at - 1) + [True]) if stop_at else None
        train(cfg, folder, *([lambda: next(answers)] if answers else []))
        return left_by(folder)

    whole = run(tmp_path / "whole")
    with pytest.raises(Preempted):
        run(tmp_path / "parts", "trainer.num_workers=2", stop_at=2)
    assert_same(whole, run(tmp_path / "parts", "trainer.num_workers=1", "resume=auto"))
    assert not same(whole, run(tmp_path / "plain", "data.augment=false"))


# ------------------------------------------------------------------------------------------- broken files


def read_all(data):
    for split in ("train", "val", "test"):
        dataset = getattr(data, split)
        list(Batches(dataset, sequential(len(dataset), 2), 0, split=split))


BROKEN = [
    ("nyuv2", "train/depth/3.npy"), ("cityscapes", "train/label_7/3.npy"), ("nyuv2", "train/image/3.npy"),
    ("celeba", "Img/img_align_celeba/000003.jpg"), ("taskonomy", "normal/house1/point_1_view_0_domain_normal.png"),
    ("pascal_context", "human_parts/2008_000003.mat"), ("pascal_context", "semseg/pascal-context/2008_000003.png"),
    ("image_table", "images/3.png"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file"), BROKEN)
def test_a_broken_file_is_named(own_root, name, file):
    root = own_root(name)
    content = (root / file).read_bytes()
    (root / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"sample \d+ cannot be read: ValueError: {root / file} cannot be read: "):
        read_all(made(name, root))


@pytest.mark.parametrize(("name", "file"), [case for case in BROKEN if "image_table" not in case])
def test_a_file_that_is_gone_is_named(own_root, name, file):
    root = own_root(name)
    (root / file).unlink()
    with pytest.raises((DataError, ValueError), match=rf"{root / file} (does not exist|is missing)|VOC12/2008_000003"):
        read_all(made(name, root))


# ---------------------------------------------------------------------------------------------- the studies

STUDIES = {
    "nyuv2": ["data.batch_size=2", "backbone.name=test_resnet", "backbone.options.out_indices=[3]"],
    "cityscapes": ["data.batch_size=2", "backbone.name=test_resnet", "backbone.options.out_indices=[3]"],
    "celeba": ["data.batch_size=4", "backbone.name=test_resnet"],
}


@pytest.mark.parametrize("study", STUDIES)
def test_the_study_runs_on_the_fixture(fixture_root, tmp_path, study):
    options = [*STUDIES[study], "backbone.pretrained=false", "trainer.max_steps=2", "trainer.num_workers=0"]
    options += ["tracker=jsonl", "device=cpu"]
    train(load([f"+experiment={study}", f"data.root={fixture_root(study)}", *options]), tmp_path / "run")
    assert [row["split"] for row in left_by(tmp_path / "run")[1]][-1] == "test"


STAGES = ["backbone.options.out_indices=[0,1,2,3]"]
ARCHITECTURES = {
    "hard": STAGES,
    "mtan": STAGES,
    "cross_stitch": [*STAGES, "optimizer.sharing.lr=1e-2"],
    "ensemble": ["architecture.experts=2"],
}


@pytest.mark.parametrize(
    ("study", "architecture"),
    [
        ("nyuv2", "mtan"),
        ("cityscapes", "cross_stitch"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("cityscapes", "mtan"), ("nyuv2", "cross_stitch"), ("nyuv2", "hard"), ("nyuv2", "ensemble")]
        ),
    ],
)
def test_the_studys_architectures_run_on_the_fixture(fixture_root, tmp_path, study, architecture):
    options = [*STUDIES[study], "backbone.pretrained=false", "trainer.max_steps=1", "trainer.num_workers=0"]
    options += ["tracker=jsonl", "device=cpu", "trainer.examples=0", f"architecture={architecture}"]
    options += ARCHITECTURES[architecture]
    train(load([f"+experiment={study}", f"data.root={fixture_root(study)}", *options]), tmp_path / "run")
    parameters = json.loads((tmp_path / "run" / "summary.json").read_text())["parameters"]
    assert bool(parameters["readers"]) == (architecture in ("mtan", "cross_stitch"))


@pytest.mark.slow
@pytest.mark.parametrize("study", ["nyuv2", "cityscapes"])
def test_the_studys_own_backbone_and_heads_take_a_step(fixture_root, study):
    cfg = load([f"+experiment={study}", f"data.root={fixture_root(study)}", "data.batch_size=2", "device=cpu",
                "backbone.pretrained=false"])  # fmt: skip
    _, state = take_steps(cfg, 1)
    x = torch.zeros(1, 3, 64, 96)
    (features,) = state.model.backbone(x)
    assert features.shape == (1, 2048, 8, 12), "dilated: a stride of 8"


def test_every_data_set_of_files_is_among_these():
    files = {path.stem for path in (CONF / "data").glob("*.yaml") if "root: ???" in path.read_text()}
    # Images or pairs of each task's own, and a table's rows: test_office.py, test_paws_x.py, test_table.py.
    assert files - {"office", "paws_x", "table"} == set(NAMES)
