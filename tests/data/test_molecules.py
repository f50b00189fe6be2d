"""A molecule as tensors: known geometries, every way to give one, and what is no molecule of QM9's kind."""

import math

import pytest
import torch

from mtl.data.molecules import MOST, Molecules, graphs

# The equilibrium geometry of water in Å: 0.9584 and 104.45 degrees.
ANGLE = math.radians(104.45)
WATER = {
    "charges": [8, 1, 1],
    "positions": [[0.0, 0.0, 0.0], [0.9584, 0.0, 0.0], [0.9584 * math.cos(ANGLE), 0.9584 * math.sin(ANGLE), 0.0]],
}
XYZ = "3\nwater\n" + "".join(
    f"{'OHH'[i]} {x} {y} {z} 0.1\n" for i, (x, y, z) in enumerate(WATER["positions"])
) + "3\nanother frame\n"  # fmt: skip


def test_water():
    found = Molecules()(WATER)
    assert {key: (list(tensor.shape), tensor.dtype) for key, tensor in found.items()} == {
        "atoms": ([29, 7], torch.float32), "bonds": ([29, 29, 2], torch.float32), "mask": ([29], torch.bool),
    }  # fmt: skip
    assert found["mask"].tolist() == [True] * 3 + [False] * 26
    assert found["atoms"][:3].tolist() == [[0, 0, 0, 1, 0, 8, 2], [1, 0, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1, 0]]
    apart = 2 * 0.9584 * math.sin(ANGLE / 2)
    expected = [[0, 0.9584, 0.9584], [0.9584, 0, apart], [0.9584, apart, 0]]
    torch.testing.assert_close(found["bonds"][:3, :3, 1], torch.tensor(expected))
    assert found["bonds"][:3, :3, 0].tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert not found["atoms"][3:].any() and not found["bonds"][3:].any() and not found["bonds"][:, 3:].any()


def test_every_way_to_give_a_molecule_gives_the_same(tmp_path):
    (tmp_path / "water.xyz").write_text(XYZ.replace("0.9584", "9.584*^-1"))  # as QM9's own files write small numbers
    own = Molecules()
    tensors = {key: torch.tensor(value) for key, value in WATER.items()}
    expected = own(WATER)
    arrays = {key: value.numpy() for key, value in tensors.items()}
    files = tmp_path / "water.xyz", str(tmp_path / "water.xyz")
    for other in (*files, XYZ, XYZ.replace("O ", "8 "), tensors, arrays, {**WATER, "charges": ["O", "H", "H"]}):
        found = own(other)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    turned = own({"charges": [1, 8, 1], "positions": [WATER["positions"][i] for i in (1, 0, 2)]})
    assert not torch.equal(turned["atoms"], expected["atoms"]), "the negative control"


def test_a_molecule_does_not_depend_on_the_others_in_its_batch():
    generator = torch.Generator().manual_seed(0)
    charges = torch.tensor([1, 6, 7, 8, 9, 0])[torch.randint(6, (50, MOST), generator=generator)]
    positions = 3 * torch.randn(50, MOST, 3, generator=generator)
    together = graphs(charges, positions)
    assert together["bonds"][..., 0].any() and not together["mask"].all()
    for i in range(50):
        alone = graphs(charges[i : i + 1], positions[i : i + 1])
        assert all(torch.equal(alone[key][0], together[key][i]) for key in alone)


def scaled(factor):
    return {**WATER, "positions": (factor * torch.tensor(WATER["positions"])).tolist()}


NITROGEN = torch.arange(30.0)[:, None] * torch.tensor([1.1, 0, 0])

MISTAKES = {
    "element": ({"charges": [16, 1, 1], "positions": WATER["positions"]},
                "a molecule has the element 16; QM9 has H (1), C (6), N (7), O (8), F (9)."),
    "symbol": (XYZ.replace("O ", "Cl "), "a molecule has the element Cl; QM9 has"),
    "atoms": ({"charges": [7] * 30, "positions": NITROGEN}, "a molecule has 30 atoms; accepted are 1 to 29"),
    "none": ({"charges": [], "positions": torch.zeros(0, 3)}, "a molecule has 0 atoms; accepted are 1 to 29"),
    "counts": ({**WATER, "charges": [8, 1]}, "a molecule has 2 charges and 3 positions; it must have one an atom."),
    "shape": ({**WATER, "positions": [[0.0, 1.0]] * 3}, "a molecule's positions have the shape [3, 2]; it must be ["),
    "nan": ({**WATER, "positions": [[math.nan] * 3] * 3}, "a molecule's positions must be finite numbers."),
    "nanometres": (scaled(0.1), "two atoms are 0.0958 apart; positions must be in Å, 0.5 or more apart."),
    "bohr": (scaled(1.8897), "no two atoms are bonded, the closest being 1.81 apart; positions must be in Å."),
    "keys": ({"charges": [1]}, "a molecule of charges lacks positions: it must have charges, the atomic numbers, and"),
    "count": ("water\n\nO 0 0 0\n", "the first line of an .xyz file must be the number of atoms, not 'water'."),
    "short": ("4" + XYZ[1:].partition("3\nanother")[0], "an .xyz file of 4 atoms has 3 lines of them."),
    "line": ("1\n\nO 0 0\n", "a line of an .xyz file must be an element and three numbers, not 'O 0 0'."),
    "number": ("1\n\nO 0 0 up\n", "a line of an .xyz file must be an element and three numbers, not 'O 0 0 up'."),
    "file": ("no.xyz", "no.xyz does not exist."),
    "kind": (3.5, "a molecule must be an .xyz file, its text, or a dict of charges and positions, not a float."),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_no_molecule_is_one_sentence(mistake):
    raw, words = MISTAKES[mistake]
    with pytest.raises(ValueError) as caught:
        Molecules()(raw)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "a.xyz").write_text("two\n")
    with pytest.raises(ValueError, match=rf"^{tmp_path / 'a.xyz'} cannot be read: the first line of an .xyz file must"):
        Molecules()(tmp_path / "a.xyz")
