"""The data set: samples ``(input, {target: value})``. Put your own in the place of this one."""

import torch
from torch import Tensor
from torch.utils.data import Dataset


class Blots(Dataset):
    """Images ``[3, 32, 32]`` of a square: its colour (a class of three) and its size (a number from 0 to 1)."""

    def __init__(self, count: int = 400) -> None:
        generator = torch.Generator().manual_seed(0)
        self.colours = torch.randint(3, (count,), generator=generator)
        self.sizes = torch.rand(count, generator=generator)

    def __len__(self) -> int:
        return len(self.colours)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        side = 4 + int(24 * self.sizes[index])
        image = torch.zeros(3, 32, 32)
        image[self.colours[index], :side, :side] = 1
        return image, {"colour": self.colours[index], "size": self.sizes[index : index + 1]}
