"""A gradient rule in a loop of Hugging Face Accelerate: python examples/accelerate_loop.py, or accelerate launch."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

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


def data():
    """The same four batches of 16 at every call."""
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    kind, size = (x[:, :4].sum(1) > 0).long(), x[:, 2:6].sum(1, keepdim=True)
    return DataLoader(TensorDataset(x, kind, size), batch_size=16)


def train(**options):
    """Train for five epochs; ``options`` of the Accelerator, as ``gradient_accumulation_steps=2``."""
    torch.manual_seed(1)
    accelerator, model = Accelerator(cpu=True, **options), TwoHeads()
    balance = model.balance  # before the model is wrapped
    model, optimizer, batches = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), data())
    for epoch in range(5):
        for x, kind, size in batches:
            with accelerator.accumulate(model):
                predicted_kind, predicted_size = model(x)
                loss = F.cross_entropy(predicted_kind, kind) + F.mse_loss(predicted_size, size)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        seen = {"loss": loss.item()} | balance.last.metrics
        accelerator.print(f"{epoch}: {seen}")  # or accelerator.log(seen)
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    train()
