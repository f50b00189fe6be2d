"""A gradient rule under DistributedDataParallel: torchrun --nproc-per-node 2 examples/ddp_torchrun.py"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import mtl


class TwoHeads(nn.Module):
    """A trunk and two heads: what kind of thing it is, and of what size."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 32), nn.Tanh())
        self.balance = mtl.Balance(mtl.rules.UPGrad(), tasks=["kind", "size"], scale="tasks")
        self.kind, self.size = nn.Linear(32, 2), nn.Linear(32, 1)

    def forward(self, x):
        """Both predictions."""
        z = self.balance(self.trunk(x))
        return self.kind(z["kind"]), self.size(z["size"])


dist.init_process_group("gloo")
torch.manual_seed(1)  # the same data on every rank, of which each takes its part
model = TwoHeads()
parallel = DistributedDataParallel(model)
optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
x = torch.randn(64, 16)
kind, size = (x[:, :4].sum(1) > 0).long(), x[:, 2:6].sum(1, keepdim=True)
part = slice(dist.get_rank(), None, dist.get_world_size())

for step in range(20):
    predicted_kind, predicted_size = parallel(x[part])
    loss = F.cross_entropy(predicted_kind, kind[part]) + F.mse_loss(predicted_size, size[part])
    optimizer.zero_grad()
    loss.backward()  # the rule sees the Gram matrix of all ranks, and gives the same weights on each
    optimizer.step()
    seen = {"loss": loss.item()} | model.balance.last.metrics  # the metrics are the same on all ranks, the loss is not
    if dist.get_rank() == 0:
        print(f"{step:2}: loss {seen['loss']:.3f}, cosine {seen['conflict/cos/kind~size']:+.3f}")  # or wandb.log(seen)

dist.destroy_process_group()
