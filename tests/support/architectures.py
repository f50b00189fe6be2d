"""Small models of every architecture, and the same networks written as loops over samples, experts and tasks."""

import torch
from torch import nn

from mtl.architectures import CGC, PLE, DSelectK, Ensemble, Hard, MMoE, OMoE
from mtl.architectures.read import Read
from mtl.model import MultiTaskModel
from mtl.tasks import Task

TASKS = ("a", "b", "c")
LOSSES = {"a": nn.CrossEntropyLoss, "b": nn.MSELoss, "c": nn.L1Loss}


def backbone():
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh())


def assemble(architecture, tasks=TASKS, head=lambda: nn.Linear(4, 3)):
    """The model that ``architecture``, a class and its arguments, makes of the backbone."""
    kind, arguments = architecture
    built = kind(backbone=backbone, tasks=tasks, **arguments)
    heads = {}
    for task in tasks:
        reader = built.reader(task)
        heads[task] = head() if reader is None else Read(reader, head())
    return MultiTaskModel(built.trunk, heads)


def make(name, tasks=TASKS, samples=6, seed=0):
    """A model in float64 with weights large enough for gates to differ, its tasks, and a batch."""
    torch.manual_seed(seed)
    model = assemble(ARCHITECTURES[name][0], tasks).double()
    inputs = torch.randn(samples, 5, dtype=torch.float64)
    model(inputs)  # lazy gates find their width
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
    targets = {task: torch.randn(samples, 3, dtype=torch.float64) for task in tasks if task != "a"}
    if "a" in tasks:
        targets["a"] = torch.randint(3, (samples,))
    return model, [Task(task, LOSSES[task]()) for task in tasks], inputs, targets


def looped(name, model, inputs):
    """The predictions of the model's tasks, sample by sample, by the paper's formula."""
    formula = ARCHITECTURES[name][1]
    predictions = {}
    for task, head in model.heads.items():
        rows = [formula(model.backbone, getattr(head, "reader", None), x) for x in inputs]
        linear = getattr(head, "head", head)
        predictions[task] = torch.stack([linear.weight @ row + linear.bias for row in rows])
    return predictions


def network(expert, x):
    """What the layers of an expert make of one sample."""
    for layer in expert.modules():
        if isinstance(layer, nn.Linear):
            x = layer.weight @ x + layer.bias
        elif isinstance(layer, nn.Tanh):
            x = torch.tanh(x)
    return x


def softmax(linear, x):
    """``softmax(W x + b)``, from its definition."""
    powers = [torch.exp(row @ x + bias) for row, bias in zip(linear.weight, linear.bias, strict=True)]
    return [power / sum(powers) for power in powers]


def weighted(weights, vectors):
    return sum(weight * vector for weight, vector in zip(weights, vectors, strict=True))


def hard(trunk, reader, x):
    return network(trunk, x)


def ensemble(trunk, reader, x):
    return sum(network(expert, x) for expert in trunk.experts) / len(trunk.experts)


def omoe(trunk, reader, x):
    experts = [network(expert, x) for expert in trunk.experts.experts]
    return weighted(softmax(trunk.mixture.gate.linear, x), experts)


def mmoe(trunk, reader, x):
    x = network(trunk.stem, x)
    return weighted(softmax(reader.gate.linear, x), [network(expert, x) for expert in trunk.experts])


def cgc(trunk, reader, x):
    x = network(trunk.stem, x)
    experts = [network(expert, x) for expert in [*reader.experts, *trunk.experts]]
    return weighted(softmax(reader.gate.linear, x), experts)


def ple(trunk, reader, x):
    g, s = dict.fromkeys(TASKS, x), x
    for number, level in enumerate(trunk.levels, 1):
        own = {task: [network(expert, g[task]) for expert in level.own[task]] for task in g}
        shared = [network(expert, s) for expert in level.shared]
        last = number == len(trunk.levels)
        gates = {reader.task: reader.below} if last else level.gates
        g = {task: weighted(softmax(gate.linear, g[task]), own[task] + shared) for task, gate in gates.items()}
        s = weighted(
            softmax(level.shared_gate.linear, s), [expert for experts in own.values() for expert in experts] + shared
        )
    experts = [network(expert, g[reader.task]) for expert in reader.experts]
    experts += [network(expert, s) for expert in trunk.last]
    return weighted(softmax(reader.gate.linear, g[reader.task]), experts)


def dselect_k(trunk, reader, x):
    experts = [network(expert, x) for expert in trunk.experts]
    bits = (len(experts) - 1).bit_length()
    static = hasattr(reader.z, "value")
    z = reader.z.value if static else reader.z.weight @ x + reader.z.bias
    w = torch.exp(reader.w.value if static else reader.w.weight @ x + reader.w.bias)
    q = [0.0] * len(experts)
    for i in range(len(w)):
        for e in range(len(experts)):
            picked = w[i] / w.sum()
            for b in range(bits):
                t = z[i * bits + b]
                s = 0 * t if t < -GAMMA / 2 else 1 + 0 * t if t > GAMMA / 2 else None
                s = -2 * t**3 / GAMMA**3 + 3 * t / (2 * GAMMA) + 0.5 if s is None else s
                picked = picked * (s if e // 2**b % 2 else 1 - s)
            q[e] = q[e] + picked
    return weighted(q, experts)


GAMMA = 6.0  # wide enough for most selectors not to have decided

# By name: the class with its arguments, and the formula of what a head reads.
ARCHITECTURES = {
    "hard": ((Hard, {}), hard),
    "ensemble": ((Ensemble, {"experts": 3}), ensemble),
    "omoe": ((OMoE, {"experts": 3}), omoe),
    "mmoe": ((MMoE, {"experts": 3}), mmoe),
    "dselect_k": ((DSelectK, {"experts": 4, "k": 2, "gamma": GAMMA}), dselect_k),
    "dselect_k, static": ((DSelectK, {"experts": 8, "k": 3, "gamma": GAMMA, "static": True}), dselect_k),
    "cgc": ((CGC, {"shared": 2, "own": 2}), cgc),
    "ple, one level": ((PLE, {"levels": 1, "shared": 2, "own": 1}), ple),
    "ple": ((PLE, {"levels": 2, "shared": 2, "own": 2}), ple),
    "ple, three levels": ((PLE, {"levels": 3, "shared": 1, "own": 2}), ple),
    "mmoe, stem": ((MMoE, {"experts": 3, "from_stage": 1}), mmoe),
    "cgc, stem": ((CGC, {"shared": 2, "own": 1, "from_stage": 2}), cgc),
    "mmoe, one expert": ((MMoE, {"experts": 1}), mmoe),
}
