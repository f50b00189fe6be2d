"""A head: any module that maps the features to a prediction."""

from torch import Tensor, nn


class Bounded(nn.Module):
    """Numbers from 0 to 1: features ``[B, in_features]`` -> ``[B, out_features]``. mtl fills ``in_features`` in."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, features: Tensor) -> Tensor:
        """The sigmoid of a linear layer."""
        return self.linear(features).sigmoid()
