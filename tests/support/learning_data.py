"""Data sets of somebody's own that learn something from a file of words: one that takes another run's metadata."""

from pathlib import Path

import torch

from mtl.metrics import classification


class Words:
    """A word a line, a class each, in the order of the alphabet. Inputs ``[B, 1, 8, 8]``."""

    targets, batch_size = ("left",), 4
    classes = 10  # that the digits' head has

    def __init__(self, root: str, metadata=None):
        words = (Path(root) / "words.txt").read_text().split()
        known = metadata["words"] if metadata else sorted(set(words))
        self.metadata, self.input_info = {"words": known}, {"in_channels": 1, "image_size": 8}
        samples = [(torch.full((1, 8, 8), len(w) / 10.0), {"left": torch.tensor(known.index(w))}) for w in words]
        self.train, self.val, self.test = samples, samples[:4], samples[4:8]

    def metrics(self, target):
        return classification(self.classes)


class Stubborn(Words):
    """The same, with a constructor that takes no metadata."""

    def __init__(self, root: str):
        super().__init__(root)


class Silent(Words):
    """The same, of which nothing is known but its sizes."""

    def __init__(self, root: str):
        super().__init__(root)
        del self.metadata
