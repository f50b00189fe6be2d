"""A message-passing network over the atoms of a molecule, in plain torch on dense tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

STEPS = 3  # of Set2Set

State = dict[str, Tensor]


class MPNN(nn.Sequential):
    """Molecules ``{"atoms": [B, N, F], "bonds": [B, N, N, E], "mask": [B, N]}`` -> features ``[B, width]``.

    Every atom is linked to every other one of its molecule. In each of ``rounds`` rounds, which share their weights, an
    atom gets the mean of ``A(e) h`` over the others, where the edge network A, of ``edge_width`` hidden units, makes a
    matrix of a pair's numbers e, and a GRU updates the atom's vector h. Set2Set reads the molecule. ``mask`` is true
    where there is an atom. Neither the order of the atoms nor the number of empty places matters. ``atom_features`` and
    ``bond_features``, F and E, are the data's.

    The stages are three: embedding, rounds, and Set2Set with the layer after it; see mtl.architectures.stages.

    Source: Gilmer et al. 2017, "Neural Message Passing for Quantum Chemistry"; as in PyTorch Geometric's example
    qm9_nn_conv, Nash-MTL and LibMTL.
    """

    first_expert_stage = 1  # experts of a mixture share the embedding, and gates read its mean over the atoms

    def __init__(
        self, atom_features: int, bond_features: int, width: int = 64, edge_width: int = 128, rounds: int = 3
    ) -> None:
        super().__init__(
            Embedding(atom_features, bond_features, width, edge_width),
            Rounds(width, edge_width, rounds),
            nn.Sequential(Set2Set(width), nn.Linear(2 * width, width), nn.ReLU()),
        )


class Embedding(nn.Module):
    """The inputs -> ``tokens`` ``[B, N, width]``, a vector an atom; ``edges`` ``[B, N, N, edge_width + 1]``; ``mask``.

    ``edges[b, i, j]`` are the hidden units of the edge network and a one, for the bias of its second layer, all divided
    by the number of atoms beside i; zeros where i or j is no atom or both are one.
    """

    def __init__(self, atom_features: int, bond_features: int, width: int, edge_width: int) -> None:
        super().__init__()
        self.atoms, self.bonds = nn.Linear(atom_features, width), nn.Linear(bond_features, edge_width)

    def forward(self, inputs: Mapping[str, Tensor]) -> State:
        """Embed atoms and pairs, each by itself."""
        mask, bonds = inputs["mask"], inputs["bonds"]
        pairs = mask[:, :, None] & mask[:, None, :] & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        shares = pairs.to(bonds.dtype) / pairs.sum(-1, keepdim=True).clamp(min=1)
        hidden = self.bonds(bonds).relu()
        edges = torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1) * shares[..., None]
        return {"tokens": self.atoms(inputs["atoms"]).relu(), "mask": mask, "edges": edges}


class Rounds(nn.Module):
    """Rounds of messages between the atoms: the state with new ``tokens``.

    The message to atom i is ``W h_i + b + mean_j A(e_ij) h_j``. A(e) is linear in the edge network's hidden units, so
    that h_j is multiplied once for each of them, and no matrix is made for a pair: at a width of 64 a tenth of the
    operations, and 4,096 numbers a pair less to keep.
    """

    def __init__(self, width: int, edge_width: int, rounds: int) -> None:
        super().__init__()
        self.edge_network = nn.Linear(edge_width, width * width)  # its second layer
        self.own = nn.Linear(width, width)
        nn.init.zeros_(self.own.bias)
        self.update = nn.GRUCell(width, width)
        self.rounds = rounds

    def forward(self, state: State) -> State:
        """All rounds."""
        tokens, edges = state["tokens"], state["edges"].flatten(2)  # [B, N, N * K]
        width = tokens.shape[-1]
        layer = torch.cat([self.edge_network.weight, self.edge_network.bias[:, None]], 1)  # [width * width, K]
        matrices = layer.view(width, width, -1).transpose(1, 2).flatten(1)  # from each of h to K times the message
        for _ in range(self.rounds):
            sent = (tokens @ matrices).view(len(tokens), -1, width)  # [B, N * K, width]
            messages = (self.own(tokens) + edges @ sent).relu()
            tokens = self.update(messages.flatten(0, 1), tokens.flatten(0, 1)).view_as(tokens)
        return {**state, "tokens": tokens}


class Set2Set(nn.Module):
    """``tokens`` ``[B, N, width]`` where ``mask`` -> ``[B, 2 * width]``, whatever their order.

    An LSTM asks three times: its output q weighs the tokens by the softmax of their products with q, and it is told
    q and their weighted sum.

    Source: Vinyals et al. 2016, "Order Matters", section 4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTMCell(2 * width, width)

    def forward(self, state: State) -> Tensor:
        """The last question and what it found."""
        tokens, mask = state["tokens"], state["mask"]
        query = cell = tokens.new_zeros(len(tokens), tokens.shape[-1])
        found = query
        for _ in range(STEPS):
            query, cell = self.lstm(torch.cat([query, found], -1), (query, cell))
            scores = (tokens @ query[..., None]).squeeze(-1).masked_fill(~mask, -torch.inf)
            found = (scores.softmax(-1)[:, None] @ tokens).squeeze(1)
        return torch.cat([query, found], -1)
