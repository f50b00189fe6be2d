"""Text from a trained multi-token model: sampled, greedy, and greedy with all heads looking ahead."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mtl.model import MultiTaskModel


@dataclass
class Speculation:
    """What speculative decoding gave, and what it took: passes, drafted tokens and how many of them were right."""

    tokens: list[int] = field(default_factory=list)
    passes: int = 0
    drafted: int = 0
    accepted: int = 0


class Decoder:
    """Continues token sequences with a model whose heads ``next_1`` … ``next_n`` predict tokens so many places ahead.

    The token at place p comes from a window of what is before it, whose start moves by half a context whenever it is
    full, so that every way of decoding gives a token the same window. Computes in float64, where the same window has
    the same largest logit however many of its places are computed at once.
    """

    def __init__(self, model: MultiTaskModel, context: int) -> None:
        self.model, self.context = model.double().eval(), context
        self.heads = [model.heads[f"next_{k}"] for k in range(1, len(model.heads) + 1)]

    def start(self, place: int) -> int:
        """Where the window of the token at ``place`` begins."""
        half = max(1, self.context // 2)
        return max(0, -(-(place - self.context) // half)) * half

    @torch.inference_mode()
    def features(self, tokens: list[int], place: int) -> Tensor:
        """The features ``[T, D]`` of all of ``tokens`` from the start of the window of ``place`` on."""
        return self.model.backbone(torch.tensor([tokens[self.start(place) :]]))[0]

    @torch.inference_mode()
    def logits(self, head: int, features: Tensor) -> Tensor:
        """What head number ``head`` (1: the next token) says at every place of the features, ``[T, V]``."""
        return self.heads[head - 1](features[None])[0]

    def sample(self, prompt: list[int], length: int, temperature: float = 0.8, seed: int = 0) -> list[int]:
        """``length`` further tokens by head 1, drawn with a temperature."""
        generator, tokens = torch.Generator().manual_seed(seed), list(prompt)
        for _ in range(length):
            logits = self.logits(1, self.features(tokens, len(tokens)))[-1]
            tokens.append(int(torch.multinomial((logits / temperature).softmax(0), 1, generator=generator)))
        return tokens[len(prompt) :]

    def greedy(self, prompt: list[int], length: int) -> list[int]:
        """``length`` further tokens by head 1, the most likely each time: one pass a token."""
        tokens = list(prompt)
        for _ in range(length):
            tokens.append(int(self.logits(1, self.features(tokens, len(tokens)))[-1].argmax()))
        return tokens[len(prompt) :]

    def speculative(self, prompt: list[int], length: int) -> Speculation:
        """The same tokens as ``greedy`` in fewer passes: the further heads draft what the next pass of head 1 checks.

        A pass over the text and a draft of m tokens gives head 1's own choice after each of them. The draft is kept as
        far as it agrees, the choice after that comes on top, and the further heads draft anew from there.

        Source: Stern et al. 2018, "Blockwise Parallel Decoding for Deep Autoregressive Models".
        """
        tokens, end, draft, told = list(prompt), len(prompt) + length, [], Speculation()
        while len(tokens) < end:
            place = len(tokens)
            # One pass has one window, and nothing is drafted that is not asked for.
            room = sum(self.start(place + m) == self.start(place) for m in range(1, len(draft) + 1))
            draft = draft[: min(room, end - place - 1)]
            features = self.features(tokens + draft, place)
            choices = self.logits(1, features)[len(features) - len(draft) - 1 :].argmax(-1).tolist()
            kept = next((i for i, token in enumerate(draft) if token != choices[i]), len(draft))
            tokens += choices[: kept + 1]
            told.passes, told.drafted, told.accepted = told.passes + 1, told.drafted + len(draft), told.accepted + kept
            until_there = features[: len(features) - len(draft) + kept]
            draft = [int(self.logits(k, until_there)[-1].argmax()) for k in range(2, len(self.heads) + 1)]
        told.tokens = tokens[len(prompt) :]
        return told
