"""A model of every shipped data set and architecture is rebuilt from its configuration and the data's description."""

import importlib
import io

import pytest
import torch
from support.composing import configuration, options

from mtl.config.build import build_parts, build_trained
from mtl.config.table_heads import take_targets
from mtl.data.loader import Batches
from mtl.prediction.answers import answer_of

SIZED = {"celeba": 16, "taskonomy": 32, "pascal_context": 32, "image_table": 16, "office": 16, "office_home": 16}
OWN = {
    "table": ["data.targets=[basket,amount,again]"],
    "domain_tables": ["data.files={bonn: bonn.csv, ulm: ulm.csv}", "data.target=price"],
    "paws_x": ["data.length=24", "backbone.width=16"],
    "stdlib": ["data.context=16"],
    "scenes": ["data.size=5", "data.image_size=32"],
    "dataset": [
        "data.dataset._target_=support.own_parts.OwnImages", "+head@heads.colour=linear", "heads.colour.out_features=3",
        "+losses.colour._target_=torch.nn.CrossEntropyLoss", "+head@heads.size=linear", "heads.size.out_features=1",
        "+losses.size._target_=torch.nn.MSELoss",
    ],
}  # fmt: skip
KINDS = {
    "celeba": {"labels"},
    "cityscapes": {"segmentation", "depth"},
    "digits": {"class"},
    "domain_tables": {"value"},
    "flights": {"class", "value"},
    "image_table": {"class", "value"},
    "multimnist": {"class"},
    "nyuv2": {"segmentation", "depth", "normals"},
    "office": {"class"},
    "office_home": {"class"},
    "pascal_context": {"segmentation", "normals", "mask"},
    "paws_x": {"class"},
    "qm9": {"value"},
    "relatedness": {"value"},
    "scenes": {"segmentation", "depth", "normals"},
    "stdlib": {"token"},
    "table": {"class", "value"},
    "taskonomy": {"segmentation", "depth", "normals"},
    "toy": {"output"},
    "dataset": {"class", "value"},
}
TAKES = {
    "qm9": "molecule",
    "paws_x": "row",
    "stdlib": "text",
    "table": "row",
    "domain_tables": "row",
    "flights": "row",
    "relatedness": "tensor",
    "toy": "tensor",
    "dataset": "tensor",
}  # the others take images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a data set's files; None for one without."""

    def make(name):
        kind = "office" if name == "office_home" else name
        module = importlib.import_module(f"mtl.data.{kind}")
        if not hasattr(module, "make_fixture"):
            return None
        root = tmp_path_factory.mktemp(name) / "data"
        home = dict.fromkeys(("Art", "Clipart", "Product", "Real_World"), (3, 2, 2))
        module.make_fixture(root, **({"sizes": home, "classes": 65} if name == "office_home" else {}))
        return root

    return make


def rebuilt(*overrides):
    """The parts of a configuration with weights of its own, and what is made of their description alone."""
    cfg = configuration("device=cpu", *overrides)
    take_targets(cfg)
    parts = build_parts(cfg)
    file = io.BytesIO()
    torch.save(parts.description, file)
    file.seek(0)
    description = torch.load(file, weights_only=True)
    trained = build_trained(cfg, description)
    before = {name: value.clone() for name, value in trained.model.state_dict().items()}
    trained.model.load_state_dict(parts.model.state_dict())
    return parts, description, trained, before


@pytest.mark.parametrize("name", options("data"))
def test_the_model_of_every_data_set(folder, name):
    root = folder(name) if name != "dataset" else None
    overrides = [f"data={name}", *OWN.get(name, []), *([f"data.image_size={SIZED[name]}"] if name in SIZED else [])]
    parts, description, trained, before = rebuilt(*overrides, *([f"data.root={root}"] if root else []))
    inputs, _ = next(iter(Batches(parts.data.test, [(0, [0, 1][: len(parts.data.test)])], 0)))
    parts.model.eval()
    with torch.no_grad():
        expected, found = parts.model(inputs), trained.model(inputs)
        trained.model.load_state_dict(before)
        other = trained.model(inputs)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[task], found[task]) for task in expected)
    assert name == "toy" or any(not torch.equal(expected[task], other[task]) for task in expected), "negative control"
    answers = {
        task: answer_of(task, output, trained.losses[task], description, getattr(trained.preprocess, "tokens", None))
        for task, output in trained.outputs.items()
    }
    assert {answer.kind for answer in answers.values()} == KINDS[name]
    assert trained.preprocess.takes == TAKES.get(name, "image")
    for task, answer in answers.items():
        scores = answer.scores(expected[task])
        assert len(scores) == len(expected[task]) and answer.say(scores[0]) is not None


FAST = "mmoe"  # the others build their parts in the same place


@pytest.mark.parametrize(
    "architecture",
    [name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in options("architecture")],
)
def test_the_model_of_every_architecture(architecture):
    backbone = ["backbone=resnet10t"] if architecture in ("mtan", "cross_stitch", "nddr", "film") else []
    parts, _, trained, _ = rebuilt(f"architecture={architecture}", "data.image_size=16", *backbone)
    inputs, _ = next(iter(Batches(parts.data.test, [(0, [0, 1])], 0)))
    parts.model.eval()
    with torch.no_grad():
        expected, found = parts.model(inputs), trained.model(inputs)
    assert all(torch.equal(expected[task], found[task]) for task in expected)
