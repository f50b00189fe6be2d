"""A gradient rule in a LightningModule, under automatic optimization: python examples/lightning_module.py"""

import lightning
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import mtl


class TwoHeads(lightning.LightningModule):
    """A trunk and two heads: what kind of thing it is, and of what size."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 32), nn.Tanh())
        self.balance = mtl.Balance(mtl.rules.UPGrad(), tasks=["kind", "size"], scale="tasks")
        self.kind, self.size = nn.Linear(32, 2), nn.Linear(32, 1)

    def training_step(self, batch):
        """The plain sum of the losses: the layer does the rest in the backward pass."""
        x, kind, size = batch
        z = self.balance(self.trunk(x))
        return F.cross_entropy(self.kind(z["kind"]), kind) + F.mse_loss(self.size(z["size"]), size)

    def on_after_backward(self):
        """The tasks' conflict, in the logger of the Trainer."""
        self.log_dict(self.balance.last.metrics)

    def configure_optimizers(self):
        """Any optimizer."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def data():
    """The same four batches of 16 at every call."""
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    kind, size = (x[:, :4].sum(1) > 0).long(), x[:, 2:6].sum(1, keepdim=True)
    return DataLoader(TensorDataset(x, kind, size), batch_size=16)


def train(**options):
    """Train for five epochs; ``options`` of Lightning's Trainer, as ``precision="bf16-mixed"``."""
    torch.manual_seed(1)
    model = TwoHeads()
    trainer = lightning.Trainer(
        max_epochs=5, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, **options
    )
    trainer.fit(model, data())
    print({name: value.item() for name, value in trainer.callback_metrics.items()})
    return model


if __name__ == "__main__":
    train()
