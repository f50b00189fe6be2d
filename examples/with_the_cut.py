"""A gradient rule with one head's graph in memory at a time: python examples/with_the_cut.py"""

import torch
from torch import nn
from torch.nn import functional as F

from mtl import Cut, Direction, Rows, conflict_metrics, rules

torch.manual_seed(1)
trunk = nn.Sequential(nn.Linear(16, 32), nn.Tanh())
heads = nn.ModuleDict({"kind": nn.Linear(32, 2), "size": nn.Linear(32, 1)})
losses = {"kind": F.cross_entropy, "size": F.mse_loss}
rule, rows = rules.UPGrad(), Rows()
optimizer = torch.optim.SGD([*trunk.parameters(), *heads.parameters()], lr=0.1)
x = torch.randn(64, 16)
targets = {"kind": (x[:, :4].sum(1) > 0).long(), "size": x[:, 2:6].sum(1, keepdim=True)}

for step in range(20):
    optimizer.zero_grad()
    cut = Cut(trunk(x), rows)  # the features, detached: each head's gradient stops here
    rows.start(len(heads), cut.leaves)
    for task, head in heads.items():
        losses[task](head(cut.features), targets[task]).backward()  # frees this head's graph
        cut.collect()  # its gradient at the features is a row
    gram = rows.gram()
    weights = len(heads) * rule(gram)
    cut.backward(Direction(rows.combine(weights), weights))  # the only backward of the trunk
    optimizer.step()
    seen = conflict_metrics(gram, list(heads))
    print(f"{step:2}: cosine {seen['conflict/cos/kind~size']:+.3f}")  # or wandb.log(seen)
