"""The message-passing network against PyTorch Geometric's, and what it must not see: the atoms' order and padding."""

import pytest
import torch
from torch import nn
from torch.nn.functional import pad, relu

from mtl.backbones.mpnn import MPNN

SIZES = [4, 3, 1, 8]


def molecules(most=8, seed=0):
    """Random molecules of SIZES atoms; bonds are the same both ways, and padding is not zero."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(len(SIZES), most, 4, generator=generator, dtype=torch.float64)
    bonds = torch.randn(len(SIZES), most, most, 3, generator=generator, dtype=torch.float64)
    mask = torch.arange(most) < torch.tensor(SIZES)[:, None]
    return {"atoms": atoms, "bonds": bonds + bonds.transpose(1, 2), "mask": mask}


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = MPNN(4, 3, width=8, edge_width=6).double()
    nn.init.normal_(network[1].own.bias)  # zero at the start, so that a wrong one would not be seen
    return network


def geometric(network, molecule):
    """LibMTL's network of a molecule ``{"atoms": [N, F], "bonds": [N, N, E]}``, of PyTorch Geometric's layers."""
    pyg = pytest.importorskip("torch_geometric.nn")
    embedding, rounds, (set2set, last, _) = network
    count, width = len(molecule["atoms"]), 8
    edges = nn.Sequential(embedding.bonds, nn.ReLU(), rounds.edge_network)
    conv = pyg.NNConv(width, width, nn.Identity(), aggr="mean").double()
    conv.nn = edges  # its constructor would draw them anew
    conv.lin.weight, conv.bias = rounds.own.weight, rounds.own.bias
    gru, pool = nn.GRU(width, width).double(), pyg.aggr.Set2Set(width, processing_steps=3).double()
    for whole, cell in ((gru, rounds.update), (pool.lstm, set2set.lstm)):
        for name, parameter in cell.named_parameters():
            setattr(whole, f"{name}_l0", parameter)
    pairs = (~torch.eye(count, dtype=torch.bool)).nonzero().T
    out = relu(embedding.atoms(molecule["atoms"]))
    h = out[None]
    for _ in range(3):
        messages = relu(conv(out, pairs, molecule["bonds"][pairs[0], pairs[1]]))
        out, h = gru(messages[None], h)
        out = out[0]
    return relu(last(pool(out, torch.zeros(count, dtype=torch.long))))[0]


def alone(inputs, i):
    """A molecule of the batch without its padding."""
    count = SIZES[i]
    return {"atoms": inputs["atoms"][i, :count], "bonds": inputs["bonds"][i, :count, :count]}


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_it_is_pytorch_geometrics_network_and_has_its_gradients(network):
    inputs = molecules()
    parameters = list(network.parameters())
    weights = torch.randn(len(SIZES), 8, dtype=torch.float64)
    features = network(inputs)
    gradients = torch.autograd.grad((weights * features).sum(), parameters)
    other = torch.stack([geometric(network, alone(inputs, i)) for i in range(len(SIZES))])
    expected = torch.autograd.grad((weights * other).sum(), parameters)
    assert relative(features, other) < 1e-12
    assert max(map(relative, gradients, expected)) < 1e-10
    inputs["bonds"][0, 0, 1] += 0.1
    assert relative(network(inputs)[:1], other[:1]) > 1e-5, "the negative control"


def test_neither_the_order_of_the_atoms_nor_padding_matters(network):
    inputs = molecules()
    features = network(inputs)
    for i, count in enumerate(SIZES):
        own = {key: tensor[None] for key, tensor in alone(inputs, i).items()}
        own["mask"] = torch.ones(1, count, dtype=torch.bool)
        assert relative(network(own)[0], features[i]) < 1e-12
        order = torch.arange(count).flip(0)
        turned = {"atoms": own["atoms"][:, order], "bonds": own["bonds"][:, order][:, :, order], "mask": own["mask"]}
        assert relative(network(turned)[0], features[i]) < 1e-12
        if count > 1:
            assert relative(network(turned | {"bonds": own["bonds"]})[0], features[i]) > 1e-5, "the negative control"
    garbage = {key: tensor.clone() for key, tensor in inputs.items()}
    garbage["atoms"][~garbage["mask"]] = 1e3
    garbage["bonds"][~garbage["mask"]] = 1e3
    assert relative(network(garbage), features) < 1e-12
    wider = {"atoms": pad(inputs["atoms"], (0, 0, 0, 4)), "bonds": pad(inputs["bonds"], (0, 0, 0, 4, 0, 4)),
             "mask": pad(inputs["mask"], (0, 4))}  # fmt: skip
    assert relative(network(wider), features) < 1e-12
