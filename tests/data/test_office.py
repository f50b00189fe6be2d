"""Tasks with images of their own: batches, the single trunk pass, and the space of the comparison."""

from collections import Counter

import pytest
import torch
from PIL import Image
from support.exactness import assert_same, left_by
from torch import nn

from mtl.architectures.multi_input import Concatenated, read_own_samples
from mtl.config import load
from mtl.config.build import build
from mtl.data.loader import DataError, EndlessSampler
from mtl.data.office import Office, make_fixture
from mtl.errors import ConfigError
from mtl.model import MultiTaskModel
from mtl.strategies import Balanced, Detached, Naive
from mtl.system.signals import Preempted
from mtl.tasks import Task
from mtl.train import train
from mtl.weightings import Equal

SIZES = {"amazon": (12, 4, 4), "dslr": (5, 2, 3), "webcam": (7, 3, 2)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("office")
    make_fixture(folder)
    return folder


def office(root, **options):
    return Office(str(root), list(SIZES), 31, batch_size=4, image_size=16, **options)


def settings(root, *overrides):
    return [
        "data=office", f"data.root={root}", "data.image_size=32", "data.batch_size=4", "tracker=jsonl", "device=cpu",
        "trainer.max_steps=4", "trainer.val_every=2", "trainer.log_every=1", "conflict.every=1", *overrides,
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------------------- data


def test_every_domain_has_its_own_images_and_classes(root):
    data = office(root)
    inputs, targets = data.train.batch([0, 1, 2], epoch=0)
    assert list(inputs) == list(targets) == list(SIZES)
    assert {tuple(x.shape) for x in inputs.values()} == {(3, 3, 16, 16)}
    line = (root / "dslr_test.txt").read_text().splitlines()[1]
    path, label = line.split()
    inputs, targets = data.test.batch([1], epoch=0)
    assert targets["dslr"].tolist() == [int(label)] and path.startswith("dslr/images/class_")
    assert len(data.train) == 12 and len(data.val) == 4


def test_a_shorter_domain_begins_again_and_none_of_its_images_is_favoured(root):
    """Over as many epochs as it has images, 12 x 5 visits are 12 for each of the five; so at any seed."""
    data = office(root, seed=3)
    seen = {domain: Counter() for domain in SIZES}
    for epoch in range(5):
        for domain in SIZES:
            seen[domain].update(data.train._position(domain, i, epoch) for i in range(12))
        assert max(seen["dslr"].values()) - min(seen["dslr"].values()) <= 1
    assert seen["dslr"] == Counter(dict.fromkeys(range(5), 12))
    assert seen["amazon"] == Counter(dict.fromkeys(range(12), 5))
    one = [office(root, seed=s).train._position("webcam", i, 0) for s in (3, 4) for i in range(7)]
    assert sorted(one[:7]) == list(range(7)) and one[:7] != one[7:]


def test_an_evaluation_has_every_image_once(root):
    data = office(root)
    for split, number in (("val", 1), ("test", 2)):
        dataset, images = getattr(data, split), Counter()
        for index in range(len(dataset)):
            inputs, targets = dataset.batch([index], epoch=0)
            assert inputs.keys() == targets.keys()
            images.update(list(inputs))
        assert images == {domain: sizes[number] for domain, sizes in SIZES.items()}
    inputs, _ = data.val.batch([0, 1, 2, 3], epoch=0)
    assert [len(x) for x in inputs.values()] == [4, 2, 3]
    assert data.val.samples("dslr", [3, 1, 0]) == [1, 0] and data.train.samples("dslr", [3, 9]) == [3, 9]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("dslr_val.txt", None, "dslr_val.txt does not exist"),
        ("dslr_val.txt", "", "dslr_val.txt lists no image"),
        (
            "dslr_val.txt",
            "dslr/images/a.jpg x\n",
            "has the line 'dslr/images/a.jpg x'; a line must be a path and a class",
        ),
        ("dslr_val.txt", "dslr/images/a.jpg 31\n", "a class from 0 to 30"),
        ("dslr_val.txt", "dslr/images/a.jpg 3\n", "but .*dslr/images/a.jpg does not exist: the images are at"),
        ("webcam_train.txt", None, "lacks .*webcam_train.txt .a list of images.: the images are at"),
    ],
)
def test_what_is_wrong_with_a_list_is_said_with_its_name(tmp_path, name, text, words):
    make_fixture(tmp_path)
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        office(tmp_path)


def test_a_broken_image_is_named(tmp_path):
    make_fixture(tmp_path)
    path = (tmp_path / "webcam_train.txt").read_text().split()[0]
    (tmp_path / path).write_bytes(b"no image")
    with pytest.raises(DataError, match=path):
        train(load(settings(tmp_path, "trainer.val_every=4")), tmp_path / "run")


# ------------------------------------------------------------------------------------------------ gradients


class Mean(nn.Module):
    """A trunk and loss whose gradients can be written down: z = x W, the loss is the mean of z times the target."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x):
        return self.linear(x)


def product(prediction, target):
    return (prediction * target).mean()


def tasks_and_batch():
    torch.manual_seed(0)
    inputs = {"a": torch.randn(4, 3), "b": torch.randn(2, 3), "c": torch.randn(5, 3)}
    targets = {name: torch.randn(len(x), 2) for name, x in inputs.items()}
    model = MultiTaskModel(Concatenated(Mean(), list(inputs)), {name: nn.Identity() for name in inputs})
    read_own_samples(model)
    return (
        model.double(),
        [Task(name, product) for name in inputs],
        *({name: value.double() for name, value in part.items()} for part in (inputs, targets)),
    )


def by_hand(inputs, targets):
    """Each task's gradient at the features, summed over its samples, and at the trunk's weight."""
    at_features = {name: t / t.numel() for name, t in targets.items()}
    sums = torch.stack([g.sum(0) for g in at_features.values()])
    weights = [(at_features[name].T @ inputs[name]).flatten() for name in inputs]
    return sums, torch.cat([torch.stack(weights), sums], 1)


@pytest.mark.parametrize("strategy", [Naive, Detached])
def test_one_trunk_pass_gives_the_sum_of_the_tasks_gradients(strategy):
    model, tasks, inputs, targets = tasks_and_batch()
    calls = []
    model.backbone.backbone.register_forward_hook(lambda *_: calls.append(1))
    result = strategy(Equal(), space="features_sum").step(model, tasks, inputs, targets, measure=True)
    sums, parameters = by_hand(inputs, targets)
    linear = model.backbone.backbone.linear
    found = torch.cat([linear.weight.grad.flatten(), linear.bias.grad])
    torch.testing.assert_close(found, parameters.sum(0))
    assert len(calls) == 1 and result.space == "features_sum"
    torch.testing.assert_close(result.gram, sums @ sums.T)
    assert result.gram[0, 1].abs() > 1e-4


@pytest.mark.parametrize("strategy", [Naive, Detached])
def test_the_audit_compares_what_is_summed_over_the_batch(strategy):
    model, tasks, inputs, targets = tasks_and_batch()
    step = strategy(Equal(), space="features_sum").step
    audit = step(model, tasks, inputs, targets, audit=True).audit
    sums, parameters = by_hand(inputs, targets)
    torch.testing.assert_close(audit.features, sums @ sums.T)
    torch.testing.assert_close(audit.parameters, parameters @ parameters.T)
    assert (audit.features - audit.parameters).abs().max() > 1e-4


def test_flattened_rows_have_nothing_in_common():
    model, tasks, inputs, targets = tasks_and_batch()
    gram = Detached(Equal()).step(model, tasks, inputs, targets, measure=True).gram
    assert torch.equal(gram, gram.diagonal().diag())


@pytest.mark.parametrize("space", ["features_sum", "parameters"])
def test_a_rule_sees_the_space_that_it_is_told(space):
    seen = []

    class Look(nn.Module):
        def forward(self, gram):
            seen.append(gram)
            return torch.tensor([1.0, 2.0, 3.0])

    model, tasks, inputs, targets = tasks_and_batch()
    names = ["a", "b", "c"]
    Balanced(Equal(), Look(), names, space=space).step(model, tasks, inputs, targets)
    sums, parameters = by_hand(inputs, targets)
    rows = parameters if space == "parameters" else sums
    torch.testing.assert_close(seen[0], rows @ rows.T)
    linear = model.backbone.backbone.linear
    found = torch.cat([linear.weight.grad.flatten(), linear.bias.grad])
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 3.0]).double() @ parameters)


def test_images_of_tasks_that_have_no_head_are_left_out():
    """As in a single-task baseline: the trunk's batch statistics are those of that task alone."""
    _, _, inputs, _ = tasks_and_batch()
    trunk = Concatenated(nn.Identity(), ["c", "a"])
    features, places = trunk(inputs)
    assert torch.equal(features, torch.cat([inputs["a"], inputs["c"]])) and places == {"a": (0, 4), "c": (4, 9)}
    features, _ = trunk({"b": inputs["b"]})  # an evaluation's last batches may have nothing of these tasks
    assert len(features) == 2


def test_a_task_without_images_in_the_batch_is_absent():
    model, tasks, inputs, targets = tasks_and_batch()
    del inputs["b"], targets["b"]
    result = Detached(Equal(), space="features_sum").step(model, tasks, inputs, targets, measure=True)
    assert list(result.losses) == ["a", "c"] and result.gram.shape == (2, 2)


# ------------------------------------------------------------------------------------------------ whole runs


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "choice",
    [
        ["strategy=detached", "conflict.audit_every=2"],
        ["strategy=mgda", "strategy.space=features_sum"],
        pytest.param(["strategy=naive"], marks=SLOW),
        pytest.param(["strategy=pcgrad", "strategy.space=parameters"], marks=SLOW),
        pytest.param(["strategy=graddrop", "strategy.space=parameters"], marks=SLOW),
    ],
    ids=" ".join,
)
def test_every_kind_of_strategy_trains(root, tmp_path, choice):
    from mtl.runs.files import read_metrics

    train(load(settings(root, *choice)), tmp_path)
    (test,) = read_metrics(tmp_path, "test")
    assert {f"{domain}/accuracy" for domain in SIZES} < set(test)
    cosines = [row["conflict/cos/amazon~dslr"] for row in read_metrics(tmp_path, "train")]
    assert len(cosines) == 4 and all(cosines)  # and not the zeros of rows that have nothing in common


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (
            ["strategy=mgda"],
            "strategy.space=features: every task has inputs of its own.* use strategy.space=parameters",
        ),
        (["strategy=graddrop"], "strategy.space=features: every task has inputs of its own"),
        (["strategy=graddrop", "strategy.space=features_sum"], "GradDrop works on the rows themselves"),
        (
            ["strategy=detached", "+strategy.space=features"],
            "strategy.space=features: every task has inputs of its own",
        ),
        (
            ["strategy=pcgrad", "strategy.space=parameters", "conflict.audit_every=2"],
            "conflict.audit_every=2: every task has inputs of its own",
        ),
        (["trainer.accumulate=exact", "trainer.accumulate_grad_batches=2"], "trainer.accumulate=exact: every task has"),
        (["strategy.token_chunks=2"], "strategy.token_chunks=2 needs features that are one tensor"),
        (["heads.dslr.out_features=0"], "heads.dslr .Linear. gives an empty prediction"),
    ],
)
def test_what_needs_samples_in_common_is_refused(root, choice, words):
    with pytest.raises(ConfigError, match=words):
        build(load(settings(root, *choice)))


def test_the_space_is_said_once(root, caplog):
    caplog.set_level("INFO")
    build(load(settings(root)))
    assert [r.message for r in caplog.records if "inputs of its own" in r.message] == [
        "every task has inputs of its own: conflict is measured on gradients that are summed over the batch"
    ]


@pytest.mark.parametrize(
    ("choice", "rates"),
    [(["proportional"], [1, 5 / 12, 7 / 12]), (["temperature", "data.temperature=2"], [1, 8 / 12, 9 / 12])],
    ids=["proportional", "temperature"],
)
def test_smaller_domains_are_drawn_less_often(root, tmp_path, choice, rates):
    """And the run goes through batches of two images, of which some have none of a domain."""
    from mtl.runs.files import read_metrics

    data = office(root, sampling=choice[0], **({"temperature": 2} if len(choice) > 1 else {}))
    inputs, targets = data.train.batch([*range(12)], epoch=0)
    assert [len(x) / 12 for x in inputs.values()] == [len(y) / 12 for y in targets.values()] == rates
    options = settings(root, f"data.sampling={choice[0]}", *choice[1:], "data.batch_size=2", "trainer.max_steps=6")
    train(load(options), tmp_path)
    losses = [{name for name in row if name.startswith("loss/")} for row in read_metrics(tmp_path, "train")]
    assert len(losses) == 6 and all("loss/amazon" in row for row in losses)
    assert any("loss/dslr" not in row for row in losses) and any("loss/dslr" in row for row in losses)


@pytest.mark.slow
@pytest.mark.parametrize("choice", [[], ["data.sampling=proportional"]], ids=["equal", "proportional"])
def test_resumed_is_never_stopped(root, tmp_path, choice):
    options = settings(root, *choice, "trainer.num_workers=2", "trainer.max_steps=5", "trainer.checkpoint_every=1")
    train(load(options), tmp_path / "whole")
    answers = iter([False, False, False, True])
    with pytest.raises(Preempted):
        train(load(options), tmp_path / "parts", lambda: next(answers))
    train(load([*options, "resume=auto"]), tmp_path / "parts")
    assert_same(left_by(tmp_path / "whole"), left_by(tmp_path / "parts"))


@pytest.mark.slow
@pytest.mark.parametrize("choice", [[], ["strategy=pcgrad", "strategy.space=parameters"]], ids=["sum", "rule"])
def test_two_processes_do_what_one_does(root, command, tmp_path, choice):
    """Losses, conflict, and accuracies over splits in which a process may have no image of a task."""
    from mtl.runs.files import read_metrics
    from mtl.runs.terminal import only_metrics

    rows = []
    for devices in (1, 2):
        options = settings(root, *choice, f"trainer.devices={devices}", "backbone.name=test_convnext")
        done = command("mtl.train", *options, f"hydra.run.dir=on_{devices}")
        assert done.returncode == 0, done.stderr
        folder = tmp_path / f"on_{devices}"
        rows.append(read_metrics(folder, "train") + read_metrics(folder, "test"))
    for one, two in zip(*rows, strict=True):
        for name, value in only_metrics(one).items():
            if name.startswith(("loss", "conflict/cos", "conflict/norm")) or name.endswith("accuracy"):
                assert two[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    assert "conflict/cos/amazon~dslr" in rows[0][0]


def test_batches_follow_from_the_step_alone(root):
    data = office(root)
    steps = list(zip(range(8), EndlessSampler(12, 4, 3, seed=0), strict=False))
    later = list(zip(range(5, 8), EndlessSampler(12, 4, 3, seed=0, start=5), strict=False))
    for (_, (epoch, indices)), (_, (again, same)) in zip(steps[5:], later, strict=True):
        assert (epoch, indices) == (again, same)
        a, b = data.train.batch(indices, epoch), office(root).train.batch(same, again)
        assert all(torch.equal(a[0][name], b[0][name]) for name in SIZES)
    first, second = (data.train.batch(steps[i][1][1], steps[i][1][0])[0]["dslr"] for i in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_office_home_is_the_same_with_other_domains(tmp_path):
    sizes = dict.fromkeys(("Art", "Clipart", "Product", "Real_World"), (6, 2, 2))
    make_fixture(tmp_path, sizes, classes=65)
    overrides = ["data=office_home", "+experiment=office", "backbone=tiny_resnet", "backbone.pretrained=false"]
    options = [o for o in settings(tmp_path, *overrides) if o != "data=office"]
    train(load([*options, "trainer.max_epochs=null"]), tmp_path / "run")
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_the_command_writes_the_fixture(command, tmp_path):
    done = command("mtl.data.office", "--make-fixture", "here")
    assert done.returncode == 0 and "data=office data.root=here" in done.stdout
    with Image.open(next((tmp_path / "here" / "amazon" / "images").rglob("*.jpg"))) as image:
        assert image.size == (40, 30)
