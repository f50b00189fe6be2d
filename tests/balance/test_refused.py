"""What is refused or warned of, in a sentence."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from support.two_heads import trained, two, two_losses
from torch import nn

import mtl
from mtl.rules import MGDA, GradDrop, GradVac, PCGrad


def test_transforms_of_torch_func_are_refused():
    model, x = two()
    parameters = dict(model.named_parameters())

    def total(parameters, x):
        return sum(two_losses(torch.func.functional_call(model, parameters, (x,))).values())

    with pytest.raises(RuntimeError, match=r"^Balance works on the gradients of a backward, and not in transforms of"):
        torch.func.grad(total)(parameters, x)
    model.eval()
    assert torch.func.grad(total)(parameters, x)  # where the layer does nothing


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_differentiating_twice_is_refused_at_once():
    model, x = two()
    with pytest.raises(RuntimeError, match=r"^Balance cannot be differentiated twice: create_graph=True"):
        sum(two_losses(model(x)).values()).backward(create_graph=True)
    z = model.balance(model.trunk(x))
    loss = model.a(z["a"]).square().mean()
    (slope,) = torch.autograd.grad(loss, z["a"], create_graph=True)  # behind the layer it is nobody's business
    (loss + model.b(z["b"]).mean() + slope.square().sum()).backward()


def test_data_parallel_is_refused():
    with pytest.raises(RuntimeError, match=r"in torch\.nn\.DataParallel; use DistributedDataParallel"):
        mtl.Balance(MGDA(), ["a"])._replicate_for_data_parallel()


def test_a_head_that_works_in_place_is_refused():
    model, x = two()
    model.a = nn.Sequential(nn.ReLU(inplace=True), model.a)
    with pytest.raises(RuntimeError, match="modified inplace"):
        model(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(rule=MGDA, tasks=["a"]), "rule=.* must be a module, as mtl.rules.UPGrad"),
        (dict(rule="mgda", tasks=["a"]), "rule=mgda must be a module"),
        (dict(rule=MGDA(), tasks="ab"), "tasks=ab must be a list of different names"),
        (dict(rule=MGDA(), tasks=[]), "tasks=.* must be a list of different names"),
        (dict(rule=MGDA(), tasks=["a", "a"]), "tasks=.* must be a list of different names"),
        (dict(rule=MGDA(), tasks=["a", 1]), "tasks=.* must be a list of different names"),
        (dict(rule=MGDA(), tasks=["a"], every=0), "every=0 must be 1 or more"),
        (dict(rule=MGDA(), tasks=["a"], scale="task"), "scale=task must be a number, or the word"),
        (dict(rule=None, tasks=["a"], scale=2.0), "scale=2.0 must be 1 without a rule"),
        (dict(rule=MGDA(), tasks=["a"], loss_scale=0), "loss_scale=0 must be a number above 0, or a scaler"),
        (dict(rule=MGDA(), tasks=["a"], loss_scale="dynamic"), "loss_scale=dynamic must be a number above 0"),
        (dict(rule=GradDrop(), tasks=["a"], every=2), "GradDrop works on the rows themselves: it needs every=1"),
        (dict(rule=GradVac(3), tasks=["a", "b"]), "GradVac has num_tasks=3, but there are 2 tasks"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_sentence(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        mtl.Balance(**options)
    assert str(caught.value).count("\n") == 0


def test_a_task_that_was_not_declared_is_named():
    model, x = two()
    with pytest.raises(KeyError, match="depht is no task of the layer; accepted: a, b"):
        model.balance(model.trunk(x))["depht"]
    with pytest.raises(KeyError, match="c is no task of the layer"):
        model.balance.losses({"c": torch.ones(())})


def test_features_without_a_tensor_are_refused():
    class Output:
        pass

    with pytest.raises(ValueError, match="The features must be a tensor or a nesting of tensors, not Output"):
        mtl.Balance(MGDA(), ["a"])(Output())


def test_features_that_would_pass_by_the_rule_are_refused():
    @dataclass
    class Output:
        last: torch.Tensor

    z = torch.randn(2, 3, requires_grad=True)
    layer = mtl.Balance(None, ["a"])
    with pytest.raises(
        ValueError, match="have tensors in a Output, which would pass by the rule; use a tuple, list or"
    ):
        layer((z, Output(z)))
    with pytest.raises(ValueError, match=r"Complex features cannot be compared; hand over torch\.view_as_real"):
        layer(torch.randn(2, 3, dtype=torch.cfloat, requires_grad=True))


def test_a_layer_on_the_features_of_another_layer():
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    first, second = mtl.Balance(None, ["a"]), mtl.Balance(None, ["c", "d"])
    split = second(first(z))
    (split["c"]["a"].sum() + split["d"]["a"].square().sum()).backward()
    rows = torch.stack([torch.ones(12, dtype=torch.float64), 2 * z.detach().flatten()])
    assert torch.allclose(second.last.gram, rows @ rows.T) and torch.allclose(z.grad, 1 + 2 * z.detach())


def test_a_backward_that_brings_no_gradient_is_of_no_task():
    class Without(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.sum()

        @staticmethod
        def backward(ctx, gradient):
            return None

    for rule in (MGDA(), GradDrop()):
        z = torch.randn(4, 3, requires_grad=True)
        layer = mtl.Balance(rule, ["a", "b"])
        Without.apply(layer(z)["a"]).backward()
        assert layer.last.tasks == [] and z.grad is None


def test_an_averaged_state_is_refused_and_a_refused_one_changes_nothing():
    layer = mtl.Balance(GradVac(2), ["a", "b"])
    averaged = {name: value * 0.5 + value * 0.5 for name, value in layer.state_dict().items()}
    with pytest.raises(ValueError, match=r"is bytes, not torch.float32: leave its _extra_state out"):
        layer.load_state_dict(averaged)
    other = mtl.Balance(MGDA(), ["a", "b"])
    layer._call.steps = 7
    with pytest.raises(RuntimeError):
        other.load_state_dict(layer.state_dict())
    assert other._call.steps == 0


def test_a_layer_that_is_made_on_another_device_has_its_state_on_the_cpu():
    with torch.device("meta"):
        layer = mtl.Balance(GradVac(2), ["a", "b"])
    z = torch.randn(4, 3, requires_grad=True)
    split = layer(z)
    (split["a"].sum() - split["b"].square().sum()).backward()
    assert layer.last.gram.device.type == "cpu" and z.grad.isfinite().all()


def test_a_correct_run_does_not_warn(caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, x = two(PCGrad())
        trained(model, x)
    assert not caplog.records
