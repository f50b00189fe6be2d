"""QM9: eleven properties of small organic molecules from their geometries, each a regression."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics import Metric

from mtl import metrics
from mtl.data import SPLITS, fixtures
from mtl.data.folder import find_root
from mtl.data.metadata import digest
from mtl.data.molecules import ATOMS, BONDS, MOST, Molecules, graphs
from mtl.data.qm9_files import COLUMNS, FIRST, Table, make_fixture, read_table
from mtl.errors import require_positive

SOURCE = (
    "it must be the folder data/ of the package qm9pack, or one that "
    "python -m mtl.data.qm9 --make-fixture DIR writes, which is tiny."
)
HELD_OUT = 10_000  # molecules of val, and of test; an eighth of fewer than 80,000


class QM9:
    """QM9's 130,831 molecules of H, C, N, O and F, with at most 29 atoms, and eleven of their properties.

    ``root`` is a folder in the format of the package qm9pack; None is that of the installed package (the extra
    ``molecules``). One fixed permutation splits the molecules: 10,000 for the test, 10,000 for validation, the others
    for training; of fewer than 80,000 an eighth each.

    Inputs: ``{"atoms": [B, 29, 7], "bonds": [B, 29, 29, 2], "mask": [B, 29]}``, see :func:`mtl.data.molecules.graphs`.
    LibMTL has the 11 and 5 numbers of PyTorch Geometric. Those of hybridisation and aromaticity are zero for every
    molecule there (its issue 8370), and are left out here. Single, double and triple bonds are one kind here: a
    geometry has no orders, and a bond's length tells them apart. Which pairs are bonded is worked out from it too: as
    many at each atom as in the skeletons of the package's InChI, but for 37 molecules.

    Targets ``[B, 1]``, standardised by the training molecules' mean and deviation: LibMTL's eleven, ``mu`` (Debye),
    ``alpha`` (a0³), ``homo``, ``lumo``, ``zpve`` (eV), ``r2`` (a0²), ``cv`` (cal/(mol K)), and ``u0_atom``, ``u_atom``,
    ``h_atom``, ``g_atom`` (eV): the energies less those of the free atoms.

    Reading the package takes three seconds. 50 MB are kept: the graphs, 1 GB in all, are made batch by batch.

    Raises ValueError for a missing package or folder, and for a malformed file, with its name.

    Source: Ramakrishnan et al. 2014; as a benchmark of multi-task learning Navon et al. 2022 (Nash-MTL), and LibMTL.
    """

    targets = tuple(COLUMNS)

    def __init__(
        self, root: str | None = None, batch_size: int = 128, metadata: Mapping[str, Any] | None = None
    ) -> None:
        require_positive(batch_size=batch_size)
        self.batch_size = batch_size
        self.input_info = {"atom_features": ATOMS, "bond_features": BONDS}
        self.preprocess = Molecules()
        folder = find_root(str(_package() if root is None else root), {FIRST: "the first molecules"}, SOURCE)
        table = read_table(folder)
        rows = _split(len(table.names))
        self.metadata = scale = dict(metadata or _scale(table.values[rows["train"]]))
        mean, std = (np.array([scale[key][target] for target in COLUMNS]) for key in ("mean", "std"))
        self.units = {target: unit for target, (_, _, unit) in COLUMNS.items()}
        self.scales = {target: ([scale["mean"][target]], [scale["std"][target]]) for target in COLUMNS}
        self.train, self.val, self.test = (Graphs(table, rows[split], mean, std) for split in SPLITS)

    def metrics(self, target: str) -> dict[str, Metric]:
        """``abs_err``, the mean absolute error, and ``rmse``, in the target's unit."""
        return metrics.standardised([self.metadata["std"][target]], [""])


class Graphs(Dataset):
    """The molecules of one split, ``rows`` of the table; their graphs are made batch by batch."""

    def __init__(self, table: Table, rows: NDArray[np.int64], mean: NDArray[Any], std: NDArray[Any]) -> None:
        self._table, self._rows = table, torch.from_numpy(rows)
        self._targets = torch.from_numpy((table.values[rows] - mean) / std).float()[..., None]
        self.names = [table.names[row] for row in rows]
        self.digest = digest(table.values[rows], table.charges, table.positions)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        inputs, targets = self.batch([index], epoch=0)
        return {name: tensor[0] for name, tensor in inputs.items()}, {name: t[0] for name, t in targets.items()}

    def batch(self, indices: Sequence[int], epoch: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The molecules of ``indices``, the same in every epoch."""
        starts, chosen = self._table.starts, torch.as_tensor(indices)
        first = starts[self._rows[chosen]]
        places = first[:, None] + torch.arange(MOST)
        absent = places >= starts[self._rows[chosen] + 1][:, None]
        places[absent] = 0
        charges = self._table.charges[places].long().masked_fill(absent, 0)
        positions = self._table.positions[places].masked_fill(absent[..., None], 0)
        targets = dict(zip(COLUMNS, self._targets[chosen].unbind(1), strict=True))
        return graphs(charges, positions), targets


def _package() -> Path:
    """The data's folder in the installed package, which need not be imported."""
    spec = importlib.util.find_spec("qm9pack")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"root=null needs the package qm9pack: pip install 'mtl-torch[molecules]', or give a root; {SOURCE}"
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _split(count: int) -> dict[str, NDArray[np.int64]]:
    """The rows of each split, as LibMTL orders a permutation: test, validation, training."""
    order, held_out = np.random.default_rng(0).permutation(count), min(HELD_OUT, count // 8)
    test, val, train = np.split(order, [held_out, 2 * held_out])
    return {"train": train, "val": val, "test": test}


def _scale(values: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Mean and deviation of each target; ValueError for one that is the same for all molecules."""
    for target, same in zip(COLUMNS, values.min(0) == values.max(0), strict=True):
        if same:
            raise ValueError(f"{target} is the same for all {len(values)} training molecules.")
    scale = {"mean": values.mean(0), "std": values.std(0, ddof=1)}
    return {key: dict(zip(COLUMNS, found.tolist(), strict=True)) for key, found in scale.items()}


if __name__ == "__main__":
    fixtures.main(make_fixture)
