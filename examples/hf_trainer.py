"""A gradient rule in Hugging Face's Trainer, on a small text encoder: python examples/hf_trainer.py"""

import tempfile

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

import mtl

CONFIG = BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip


class TwoHeads(nn.Module):
    """A text encoder and two heads on its first token: the text's topic, and its tone."""

    def __init__(self):
        super().__init__()
        self.encoder = BertModel(CONFIG, add_pooling_layer=False)
        self.balance = mtl.Balance(mtl.rules.UPGrad(), tasks=["topic", "tone"], scale="tasks")
        self.topic, self.tone = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, input_ids, topic, tone):
        """The sum of the losses, as the Trainer asks for it."""
        z = self.balance(self.encoder(input_ids).last_hidden_state[:, 0])
        return {"loss": F.cross_entropy(self.topic(z["topic"]), topic) + F.mse_loss(self.tone(z["tone"]), tone)}


def data():
    """The same 64 texts of eight tokens at every call: their second token tells the topic, and the third the tone."""
    ids = torch.randint(3, 50, (64, 8), generator=torch.Generator().manual_seed(0))
    ids[:, 1] %= 3
    tone = (ids[:, 2:3] / 25 - 1).to(torch.get_default_dtype())
    return [{"input_ids": text, "topic": text[1], "tone": value} for text, value in zip(ids, tone, strict=True)]


class ConflictTrainer(Trainer):
    """A Trainer whose logs of the loss also have the tasks' conflict, wherever it reports to."""

    def log(self, logs, *args):
        """Log the loss and the conflict of one step together."""
        super().log(logs | self.model.balance.last.metrics if "loss" in logs else logs, *args)


def train(**options):
    """Train for two epochs; ``options`` of TrainingArguments, as ``gradient_accumulation_steps=2``."""
    torch.manual_seed(0)
    model = TwoHeads()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, num_train_epochs=2, per_device_train_batch_size=16, learning_rate=1e-3, logging_steps=1,
            use_cpu=True, save_strategy="no", label_names=["topic", "tone"], **options,
        )  # fmt: skip
        ConflictTrainer(model, arguments, train_dataset=data()).train()
    return model


if __name__ == "__main__":
    train()
