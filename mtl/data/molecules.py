"""A molecule as a graph network reads it: elements and positions become dense tensors, of one molecule or of many."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtl.data.folder import errors_named_by

NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}  # QM9's elements and their atomic numbers
RADII = {"H": 0.31, "C": 0.76, "N": 0.71, "O": 0.66, "F": 0.57}  # Å; covalent, Cordero et al. 2008
SLACK = 0.25  # Å; two atoms are bonded where they are closer than the sum of their radii and this
MOST = 29  # atoms of a molecule
CLOSEST = 0.5  # Å; no two nuclei of a molecule are closer
ATOMS, BONDS = 7, 2  # numbers of an atom and of a pair


class Molecules:
    """A molecule of the user's -> ``{"atoms": [29, 7], "bonds": [29, 29, 2], "mask": [29]}``, padded with zeros.

    A molecule is a path of an .xyz file, such a file's text, or ``{"charges": [N], "positions": [N, 3]}``: the atomic
    numbers, and the positions in Ångström. Only the first frame of a file is read, and of its lines the first four
    columns. The tensors are those of :func:`graphs`.

    Raises ValueError for an element that QM9 does not have, for more than 29 atoms, and for positions that are no
    molecule's in Ångström.
    """

    takes = "molecule"

    def __call__(self, molecule: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
        """The tensors of one molecule."""
        charges, positions = _read(molecule)
        _check(charges, positions)
        padding = MOST - len(charges)
        found = graphs(
            torch.cat([charges, charges.new_zeros(padding)])[None],
            torch.cat([positions, positions.new_zeros(padding, 3)])[None],
        )
        return {name: tensor[0] for name, tensor in found.items()}

    def state(self) -> dict[str, Any]:
        """All that makes another one."""
        return {"_target_": "mtl.data.molecules.Molecules"}


def graphs(charges: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """The complete graphs of molecules: atomic numbers ``[B, N]``, 0 where there is no atom; positions ``[B, N, 3]``.

    - ``atoms`` ``[B, N, 7]``: the element as one of H, C, N, O and F, the atomic number, and the number of hydrogen
      atoms that are bonded to the atom;
    - ``bonds`` ``[B, N, N, 2]``: 1 for a pair that is bonded, and its distance in Å;
    - ``mask`` ``[B, N]``, bool: where there is an atom.

    All is made of the geometry: a pair is bonded that is closer than its covalent radii and 0.25 Å together.
    """
    mask = charges > 0
    pairs = mask[:, :, None] & mask[:, None, :] & ~torch.eye(mask.shape[1], dtype=torch.bool)
    # By components: a sum over an axis of three may round otherwise in another batch.
    x, y, z = (positions[:, :, None] - positions[:, None]).unbind(-1)
    distances = (x * x + y * y + z * z).sqrt() * pairs
    radii = _by_number(RADII)[charges]
    bonded = pairs & (distances < radii[:, :, None] + radii[:, None, :] + SLACK)
    elements = charges[..., None] == torch.tensor(list(NUMBERS.values()))
    hydrogens = (bonded & (charges == NUMBERS["H"])[:, None, :]).sum(-1)
    return {
        "atoms": torch.cat([elements, charges[..., None], hydrogens[..., None]], -1).float(),
        "bonds": torch.stack([bonded.float(), distances], -1),
        "mask": mask,
    }


def _by_number(values: Mapping[str, float]) -> Tensor:
    """The values of elements at their atomic numbers."""
    table = torch.zeros(max(NUMBERS.values()) + 1)
    table[list(NUMBERS.values())] = torch.tensor([values[element] for element in NUMBERS])
    return table


def _read(molecule: Any) -> tuple[Tensor, Tensor]:
    """Atomic numbers ``[N]`` and positions ``[N, 3]``."""
    if isinstance(molecule, Mapping):
        if missing := {"charges", "positions"} - set(molecule):
            raise ValueError(
                f"a molecule of {', '.join(map(str, molecule)) or 'nothing'} lacks {' and '.join(sorted(missing))}: "
                "it must have charges, the atomic numbers, and positions, in Å."
            )
        return _numbers(molecule["charges"]), _positions(molecule["positions"])
    if not isinstance(molecule, str | Path):
        raise ValueError(
            "a molecule must be an .xyz file, its text, or a dict of charges and positions, not a "
            f"{type(molecule).__name__}."
        )
    if isinstance(molecule, str) and "\n" in molecule.strip():
        return _parse(molecule)
    with errors_named_by(Path(molecule)):
        return _parse(Path(molecule).read_text())


def _parse(text: str) -> tuple[Tensor, Tensor]:
    """The first frame of an .xyz file: the number of atoms, a line of comment, and a line an atom."""
    first, _, *rest = [*text.splitlines(), "", ""]
    if not first.strip().isdigit():
        raise ValueError(f"the first line of an .xyz file must be the number of atoms, not {first.strip()!r}.")
    lines = [line.split() for line in rest[: int(first)] if line.strip()]
    if len(lines) != int(first):
        raise ValueError(f"an .xyz file of {int(first)} atoms has {len(lines)} lines of them.")
    return _numbers([line[0] for line in lines]), _positions([_place(line) for line in lines])


def _place(line: list[str]) -> list[float]:
    """The position in a line of an .xyz file."""
    try:
        x, y, z = (float(word.replace("*^", "e")) for word in line[1:4])  # QM9's own files write 1e-6 as 1.*^-6
    except ValueError:
        raise ValueError(
            f"a line of an .xyz file must be an element and three numbers, not {' '.join(line)!r}."
        ) from None
    return [x, y, z]


def _numbers(charges: Any) -> Tensor:
    """Atomic numbers ``[N]`` of numbers or of symbols."""
    known = NUMBERS | {str(number): number for number in NUMBERS.values()}
    names = list(map(str, charges if isinstance(charges, list | tuple) else torch.as_tensor(charges).tolist()))
    for name in names:
        if name not in known:
            accepted = ", ".join(f"{element} ({number})" for element, number in NUMBERS.items())
            raise ValueError(f"a molecule has the element {name}; QM9 has {accepted}.")
    return torch.tensor([known[name] for name in names], dtype=torch.int64)


def _positions(positions: Any) -> Tensor:
    """Positions ``[N, 3]``."""
    found = torch.as_tensor(positions, dtype=torch.float32)
    if found.dim() != 2 or found.shape[1] != 3:
        raise ValueError(f"a molecule's positions have the shape {list(found.shape)}; it must be [atoms, 3].")
    return found


def _check(charges: Tensor, positions: Tensor) -> None:
    """ValueError unless it is a molecule that QM9 could have, in Å."""
    count = len(charges)
    if count != len(positions):
        raise ValueError(f"a molecule has {count} charges and {len(positions)} positions; it must have one an atom.")
    if not 1 <= count <= MOST:
        raise ValueError(f"a molecule has {count} atoms; accepted are 1 to {MOST}, the most in QM9.")
    if not positions.isfinite().all():
        raise ValueError("a molecule's positions must be finite numbers.")
    if count == 1:
        return
    distances = torch.pdist(positions)
    if distances.min() < CLOSEST:
        raise ValueError(f"two atoms are {distances.min():.3g} apart; positions must be in Å, {CLOSEST} or more apart.")
    if not graphs(charges[None], positions[None])["bonds"][..., 0].any():
        raise ValueError(
            f"no two atoms are bonded, the closest being {distances.min():.3g} apart; positions must be in Å."
        )
