import torch

from mtl.training.loaders import to_device


def test_every_tensor_of_a_nesting_moves():
    moved = to_device(({"a": torch.ones(1)}, [torch.ones(1), "text"]), torch.device("meta"))
    assert moved[0]["a"].device.type == moved[1][0].device.type == "meta" and moved[1][1] == "text"
