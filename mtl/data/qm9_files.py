"""QM9 as the package qm9pack has it: CSV files with a row a molecule, read and, for tests, made."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtl.data.folder import errors_named_by
from mtl.data.molecules import MOST, NUMBERS

log = logging.getLogger(__name__)

FIRST = "qm9_part1.csv"
HARTREE = 27.211386246  # eV, as PyTorch Geometric has it

# Target -> its column, what its numbers are multiplied by, and the unit that they then have.
COLUMNS = {
    "mu": ("Dipole_debye", 1.0, "D"),
    "alpha": ("Polarizability_bohr3", 1.0, "a0^3"),
    "homo": ("HOMO_au", HARTREE, "eV"),
    "lumo": ("LUMO_au", HARTREE, "eV"),
    "r2": ("R2_bohr2", 1.0, "a0^2"),
    "zpve": ("ZPVE_au", HARTREE, "eV"),
    "u0_atom": ("InternalEnergy_0K_au", HARTREE, "eV"),
    "u_atom": ("InternalEnergy_298K_au", HARTREE, "eV"),
    "h_atom": ("Enthalphy_298K_au", HARTREE, "eV"),
    "g_atom": ("GibbsFreeEnergy_298K_au", HARTREE, "eV"),
    "cv": ("Heatcapacity_Cv_cal_mol_K", 1.0, "cal/(mol K)"),
}
# The energies of the free atoms H, C, N, O and F in Hartree, which QM9's atomref.txt gives beside the molecules.
FREE_ATOMS = {
    "u0_atom": (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    "u_atom": (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    "h_atom": (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    "g_atom": (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
}


class Table(NamedTuple):
    """All molecules, their atoms one after the other: those of molecule i are ``starts[i]`` to ``starts[i + 1]``."""

    names: list[str]
    charges: Tensor  # [atoms], uint8
    positions: Tensor  # [atoms, 3], float32, Å
    starts: Tensor  # [molecules + 1]
    values: NDArray[np.float64]  # [molecules, targets], in the targets' units


def read_table(folder: Path) -> Table:
    """The molecules of all qm9_part*.csv in a folder; ValueError for a malformed file, with its name."""
    parts = [_read_part(file) for file in sorted(folder.glob("qm9_part*.csv"))]
    names, charges, positions, counts, values = zip(*parts, strict=True)
    counted = torch.from_numpy(np.concatenate(counts))
    table = Table(
        [name for part in names for name in part],
        torch.from_numpy(np.concatenate(charges)),
        torch.from_numpy(np.concatenate(positions)),
        torch.cat([counted.new_zeros(1), counted.cumsum(0)]),
        np.concatenate(values),
    )
    log.info("%s: %s molecules with %s atoms", folder, f"{len(table.names):,}", f"{len(table.charges):,}")
    return table


def _read_part(file: Path) -> tuple[list[str], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Names, atomic numbers, positions, counts of atoms and targets of a file's molecules."""
    columns = [column for column, _, _ in COLUMNS.values()]
    with errors_named_by(file):
        table = pd.read_csv(file, usecols=["XYZ_file", "N_atoms", "Elements", "XYZ_Ang", *columns])
        counts = table["N_atoms"].to_numpy(np.int64)
        _check_rows(table, counts, columns)
        symbols = "".join(table["Elements"]).translate(str.maketrans("", "", "[]', "))
        charges = _charges(symbols)
        texts = ",".join(table["XYZ_Ang"]).translate(str.maketrans("", "", "[]"))
        positions = np.fromstring(texts, np.float32, sep=",").reshape(-1, 3)
        if len(positions) != len(charges):
            raise ValueError(f"it has {len(charges)} elements and {len(positions)} positions")
    values = table[columns].to_numpy(np.float64)
    for column, (target, (_, factor, _)) in enumerate(COLUMNS.items()):
        if target in FREE_ATOMS:
            energies = np.zeros(max(NUMBERS.values()) + 1)
            energies[list(NUMBERS.values())] = FREE_ATOMS[target]
            values[:, column] -= np.add.reduceat(energies[charges], np.cumsum(counts) - counts)
        values[:, column] *= factor
    return table["XYZ_file"].tolist(), charges, positions, counts, values


def _check_rows(table: pd.DataFrame, counts: NDArray[np.int64], columns: Sequence[str]) -> None:
    """ValueError for the first molecule of which something is missing, or whose atoms are not as many as it says."""
    wrong = {
        "no number for a property": ~np.isfinite(table[columns].to_numpy(np.float64)).all(1),
        f"not 1 to {MOST} atoms": (counts < 1) | (counts > MOST),
        "not an element an atom": table["Elements"].str.count("'").to_numpy() != 2 * counts,
        "not three numbers an atom": table["XYZ_Ang"].str.count(",").to_numpy() != 3 * counts - 1,
    }
    for reason, rows in wrong.items():
        if rows.any():
            raise ValueError(f"{table['XYZ_file'][int(rows.argmax())]} has {reason}")


def _charges(symbols: str) -> NDArray[np.uint8]:
    """The atomic numbers of elements, one letter each."""
    if unknown := set(symbols) - set(NUMBERS):
        raise ValueError(f"it has the element {min(unknown)}; QM9's are {', '.join(NUMBERS)}")
    table = np.zeros(256, np.uint8)
    table[[ord(symbol) for symbol in NUMBERS]] = list(NUMBERS.values())
    return table[np.frombuffer(symbols.encode(), np.uint8)]


def make_fixture(root: Path, count: int = 64) -> None:
    """Write a tiny QM9: zigzag chains of C, N, O and F with their hydrogen, with properties to learn."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(1, count + 1):
        symbols, positions = _chain(rng)
        charges = np.array([NUMBERS[symbol] for symbol in symbols])
        energies = {target: sum(dict(zip(NUMBERS, own, strict=True))[s] for s in symbols)
                    - 0.16 * (len(symbols) - 1) for target, own in FREE_ATOMS.items()}  # fmt: skip
        values = {
            "mu": np.abs(charges @ positions).max(), "alpha": charges.sum(), "homo": -0.2 - 0.01 * charges.max(),
            "lumo": 0.1 - 0.01 * len(charges), "r2": (charges[:, None] * positions**2).sum(),
            "zpve": 0.01 * len(charges), "cv": 1.5 * len(charges), **energies,
        }  # fmt: skip
        rows.append({
            "XYZ_file": f"dsgdb9nsd_{number:06}.xyz", "N_atoms": len(symbols),
            "Elements": str(symbols).replace(" ", ""), "XYZ_Ang": str(positions.round(8).tolist()).replace(" ", ""),
            **{COLUMNS[target][0]: value + 0.001 * rng.normal() for target, value in values.items()},
        })  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows[: count // 2]).to_csv(root / FIRST, index=False)
    pd.DataFrame(rows[count // 2 :]).to_csv(root / "qm9_part2.csv", index=False)


def _chain(rng: np.random.Generator) -> tuple[list[str], NDArray[np.float64]]:
    """Elements and positions of a chain of one to six atoms with hydrogen where a bond is free."""
    length = int(rng.integers(1, 7))
    chain = [*rng.choice(["C", "N", "O"], length - 1).tolist(), str(rng.choice(["C", "N", "O", "F"]))]
    symbols, positions = list(chain), [(1.25 * i, 0.8 * (i % 2), 0.0) for i in range(length)]
    for i, symbol in enumerate(chain):
        x, y, z = positions[i]
        outwards = [(x - 1.05, y, z)] * (i == 0) + [(x + 1.05, y, z)] * (i == length - 1)
        places = [*outwards, (x, y, z + 1.05), (x, y, z - 1.05)]
        free = {"C": 4, "N": 3, "O": 2, "F": 1}[symbol] - (i > 0) - (i < length - 1)
        symbols += ["H"] * free
        positions += places[:free]
    return symbols, np.array(positions) + 0.03 * rng.normal(size=(len(positions), 3))
