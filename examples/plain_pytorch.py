"""A gradient rule and the tasks' conflict in a plain PyTorch loop: python examples/plain_pytorch.py"""

import torch
from torch import nn
from torch.nn import functional as F

import mtl


class TwoHeads(nn.Module):
    """A trunk and two heads: what kind of thing it is, and of what size."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 32), nn.Tanh())
        # scale: UPGrad's mean of the gradients becomes their sum, as without the layer, where the tasks agree.
        self.balance = mtl.Balance(mtl.rules.UPGrad(), tasks=["kind", "size"], scale="tasks")
        self.kind, self.size = nn.Linear(32, 2), nn.Linear(32, 1)

    def forward(self, x):
        """Both predictions."""
        z = self.balance(self.trunk(x))  # {"kind": z, "size": z}
        return self.kind(z["kind"]), self.size(z["size"])


torch.manual_seed(1)
model = TwoHeads()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
x = torch.randn(64, 16)
kind, size = (x[:, :4].sum(1) > 0).long(), x[:, 2:6].sum(1, keepdim=True)

for step in range(20):
    predicted_kind, predicted_size = model(x)
    loss = F.cross_entropy(predicted_kind, kind) + F.mse_loss(predicted_size, size)
    optimizer.zero_grad()
    loss.backward()  # the trunk gets the rule's gradient, each head that of its own loss
    optimizer.step()
    seen = {"loss": loss.item()} | model.balance.last.metrics
    print(f"{step:2}: loss {seen['loss']:.3f}, cosine {seen['conflict/cos/kind~size']:+.3f}")  # or wandb.log(seen)
