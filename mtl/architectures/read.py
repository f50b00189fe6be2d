from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from mtl.model import MultiTaskModel


class Read(nn.Module):
    """A head on what its ``reader`` makes of the common features; ``head(reader(features))``.

    Where the head has ``mix`` and ``read``, it has them too: the reader belongs to what mixes the positions.
    """

    def __init__(self, reader: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.reader, self.head = reader, head

    def forward(self, features: Any) -> Any:
        """The prediction."""
        return self.head(self.reader(features))

    def mix(self, features: Any) -> Any:
        """What mixes the positions."""
        mix: Any = getattr(self.head, "mix", lambda read: read)
        return mix(self.reader(features))

    def read(self, mixed: Any) -> Any:
        """What comes after: every position by itself."""
        read: Any = getattr(self.head, "read", self.head)
        return read(mixed)


def readers(model: MultiTaskModel) -> Iterator[tuple[str, nn.Module]]:
    """Every task with a reader, and the reader."""
    for task, head in model.heads.items():
        yield from ((task, module.reader) for module in head.modules() if isinstance(module, Read))
