"""Small encoders of texts, and a batch for them."""

import torch
import transformers

from mtl.text import Text

VOCABULARY, CONTEXT = 60, 12
SIZES = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24, "embedding_size": 16,
    "dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, "n_embd": 16, "n_layer": 2, "n_head": 2,
    "vocab_size": VOCABULARY, "max_position_embeddings": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def configuration(kind, **changes):
    """A tiny configuration of transformers, without dropout."""
    config = transformers.AutoConfig.for_model(kind)
    for name, value in (SIZES | changes).items():
        if hasattr(config, name):
            setattr(config, name, value)
    for name in list(vars(config)):
        if "dropout" in name and isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    return config


def encoder(kind="bert", seed=0, **arguments):
    """A backbone of texts with random weights, large enough for every layer to matter."""
    torch.manual_seed(seed)
    text = Text(VOCABULARY, CONTEXT, config=configuration(kind).to_dict(), **arguments)
    with torch.no_grad():
        for parameter in text.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return text


def batch(samples=5, length=CONTEXT, seed=0):
    """Texts of several lengths, one of them whole."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([length, 3, 7, 1, 9, 5, 4, 2])[:samples]
    mask = torch.arange(length) < lengths[:, None]
    tokens = torch.randint(5, VOCABULARY, (samples, length), generator=generator)
    return {"tokens": tokens.where(mask, 0), "mask": mask}
