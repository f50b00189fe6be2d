"""QM9: the package's own numbers, files, splits, training, and a model without its data."""

import importlib.util
import re
import shutil
from functools import partialmethod

import numpy as np
import pandas as pd
import pytest
import torch
from support.composing import configuration
from support.exactness import assert_same, left_by, same
from support.going_on import goes_on
from support.ranks import run_ranks
from torch import nn

import mtl
from mtl import predict
from mtl.config import load
from mtl.config.build import build
from mtl.data.molecules import NUMBERS
from mtl.data.qm9 import QM9
from mtl.errors import ConfigError
from mtl.evaluate import evaluate_checkpoint
from mtl.runs.files import read_metrics
from mtl.train import train

SYMBOLS = {number: symbol for symbol, number in NUMBERS.items()}
SMALL = ["data=qm9", "data.batch_size=6", "backbone.width=8", "backbone.edge_width=8", "device=cpu", "tracker=jsonl"]


@pytest.fixture
def root(fixture_root):
    return fixture_root("qm9")


@pytest.fixture(scope="module")
def table(fixture_root):
    """The fixture's rows by the molecules' names, as pandas reads them."""
    parts = sorted(fixture_root("qm9").glob("*.csv"))
    return pd.concat(map(pd.read_csv, parts)).set_index("XYZ_file")


def numbers(text):
    return [float(number) for number in re.findall(r"[-\d.e]+", text)]


def raw(table, name):
    """A molecule as a user has it."""
    symbols = re.findall("[A-Z]", table["Elements"][name])
    return {"charges": [NUMBERS[s] for s in symbols],
            "positions": np.reshape(numbers(table["XYZ_Ang"][name]), (-1, 3))}  # fmt: skip


# --------------------------------------------------------------------------------------------------- the package


@pytest.fixture(scope="module")
def package():
    pytest.importorskip("pandas")
    if importlib.util.find_spec("qm9pack") is None:
        pytest.skip("the package qm9pack is not installed")
    return QM9()


# MoleculeNet's gdb9.sdf.csv, which PyTorch Geometric reads; its atomisation energies are in kcal/mol.
MOLECULENET = {
    "mu": 0.0, "alpha": 13.21, "homo": -0.3877, "lumo": 0.1171, "r2": 35.3641, "zpve": 0.044749, "cv": 6.469,
    "u0_atom": -395.999594594, "u_atom": -398.643290011, "h_atom": -401.014646522, "g_atom": -372.471772148,
}  # fmt: skip
HARTREE, KCAL = 27.211386246, 0.04336414  # eV, as PyTorch Geometric converts


def test_methane_is_moleculenets_in_pytorch_geometrics_units(package):
    factors = {"homo": HARTREE, "lumo": HARTREE, "zpve": HARTREE} | dict.fromkeys(
        ("u0_atom", "u_atom", "h_atom", "g_atom"), KCAL
    )
    split, place = next(
        (split, split.names.index("dsgdb9nsd_000001.xyz"))
        for split in (package.train, package.val, package.test)
        if "dsgdb9nsd_000001.xyz" in split.names
    )
    inputs, targets = split[place]
    for target, value in MOLECULENET.items():
        (mean,), (std,) = package.scales[target]
        found = targets[target].item() * std + mean
        assert found == pytest.approx(value * factors.get(target, 1), rel=2e-6, abs=1e-6), target
    assert inputs["atoms"][:5].tolist() == [[0, 1, 0, 0, 0, 6, 4]] + [[1, 0, 0, 0, 0, 1, 0]] * 4
    assert inputs["bonds"][0, 1:5, 1].numpy() == pytest.approx(1.0919, abs=1e-3)


def test_the_package_has_what_pytorch_geometric_has(package):
    splits = package.train, package.val, package.test
    assert [len(split) for split in splits] == [110_831, 10_000, 10_000]
    names = [name for split in splits for name in split.names]
    assert len(set(names)) == 130_831 and {len(name) for name in names} == {20}
    values = torch.cat([package.train._targets, package.val._targets]).squeeze(-1)
    assert values[:110_831].mean(0).abs().max() < 1e-4 and (values[:110_831].std(0) - 1).abs().max() < 1e-4
    assert package.scales["u0_atom"][0][0] == pytest.approx(-76.116, abs=0.05)  # the mean of PyTorch Geometric's column


def test_bonds_are_those_of_the_inchi(package):
    """Of the first thousand test molecules: each atom's bonds to others than hydrogen, and hydrogen's single one."""
    folder = importlib.util.find_spec("qm9pack").submodule_search_locations[0]
    columns = ["XYZ_file", "InChi"]
    inchi = pd.concat([pd.read_csv(f"{folder}/data/qm9_part{i}.csv", usecols=columns) for i in (1, 2, 3)])
    inchi = inchi.set_index("XYZ_file")["InChi"]
    inputs, _ = package.test.batch(range(1000), 0)
    agree = 0
    for name, atoms, bonds in zip(package.test.names, inputs["atoms"], inputs["bonds"][..., 0], strict=False):
        hydrogen, mask = atoms[:, 0] == 1, atoms[:, 5] > 0
        heavy = bonds[mask & ~hydrogen][:, mask & ~hydrogen].sum(1)
        assert (bonds[hydrogen].sum(1) == 1).all()
        agree += sorted(filter(None, heavy.tolist())) == degrees(inchi[name])
    assert agree >= 998


def degrees(inchi):
    """The numbers of bonds of the skeleton's atoms, of the layer /c of an InChI, in order."""
    layer = re.search(r"/c([^/]*)", inchi)
    bonds, before, branches = set(), None, []
    for token in re.findall(r"\d+|[(),]", layer[1] if layer else ""):
        if token == "(":
            branches.append(before)
        elif token == ",":
            before = branches[-1]
        elif token == ")":
            before = branches.pop()
        else:
            bonds |= {frozenset((before, token))} if before else set()
            before = token
    return sorted(np.unique([atom for bond in bonds for atom in bond], return_counts=True)[1].tolist())


# ------------------------------------------------------------------------------------------------------ the files


def test_it_is_what_its_files_hold(root, table):
    data = QM9(str(root))
    assert [len(split) for split in (data.train, data.val, data.test)] == [48, 8, 8]
    assert len({*data.train.names, *data.val.names, *data.test.names}) == len(table) == 64
    free = {"C": -37.846772, "N": -54.583861, "O": -75.064579, "F": -99.718730, "H": -0.500273}
    inputs, targets = data.val.batch([3, 1, 4], epoch=0)
    for place, name in enumerate(np.array(data.val.names)[[3, 1, 4]]):
        molecule = raw(table, name)
        own = data.preprocess(molecule)
        assert all(torch.equal(inputs[key][place], own[key]) for key in own), "as the user's own"
        alone = data.val[[3, 1, 4][place]]
        assert all(torch.equal(inputs[key][place], alone[0][key]) for key in own)
        energy = table["InternalEnergy_0K_au"][name] - sum(free[SYMBOLS[charge]] for charge in molecule["charges"])
        expected = {"mu": table["Dipole_debye"][name], "homo": table["HOMO_au"][name] * HARTREE,
                    "u0_atom": energy * HARTREE}  # fmt: skip
        for target, value in expected.items():
            (mean,), (std,) = data.scales[target]
            assert targets[target].shape == (3, 1)
            assert targets[target][place].item() * std + mean == pytest.approx(value, rel=1e-5)
            assert alone[1][target] == targets[target][place]


def test_the_training_molecules_alone_standardise(root):
    data = QM9(str(root))
    _, targets = data.train.batch(range(48), 0)
    for target in data.targets:
        assert targets[target].mean().item() == pytest.approx(0, abs=1e-6)
        assert targets[target].std().item() == pytest.approx(1, abs=1e-6)
    kept = QM9(str(root), metadata={key: dict.fromkeys(data.targets, 2.0) for key in ("mean", "std")})
    assert kept.train.batch([0], 0)[1]["mu"] != targets["mu"][0] and kept.scales["cv"] == ([2.0], [2.0])


def test_errors_are_in_the_propertys_unit(root):
    data = QM9(str(root))
    metric = data.metrics("homo")["abs_err"]
    metric.update(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.5], [0.0]]))
    assert metric.compute().item() == pytest.approx(0.25 * data.scales["homo"][1][0])
    assert data.units["homo"] == "eV" and set(data.units) == set(data.targets)


DAMAGE = {
    "element": ("'C'", "'S'", "cannot be read: it has the element S; QM9's are H, C, N, O, F"),
    "atoms": ("xyz,18", "xyz,17", "cannot be read: dsgdb9nsd_000001.xyz has not an element an atom"),
    "many": ("xyz,18", "xyz,30", "cannot be read: dsgdb9nsd_000001.xyz has not 1 to 29 atoms"),
    "column": ("HOMO_au", "HOMO", r"cannot be read: Usecols do not match columns, .*HOMO_au"),
    "position": ("]]\"", ",7]]\"", "cannot be read: dsgdb9nsd_000001.xyz has not three numbers an atom"),
    "number": ("[[", "[[x", "cannot be read: "),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(own_root, damage):
    old, new, words = DAMAGE[damage]
    file = own_root("qm9") / "qm9_part1.csv"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=f"^{file} {words}"):
        QM9(str(file.parent))


def test_a_property_without_a_number_or_without_a_spread_is_named(own_root):
    file = own_root("qm9") / "qm9_part2.csv"
    whole = pd.read_csv(file)
    whole.assign(HOMO_au=whole["HOMO_au"].where(whole.index != 2)).to_csv(file, index=False)
    with pytest.raises(ValueError, match=r"dsgdb9nsd_000035.xyz has no number for a property"):
        QM9(str(file.parent))
    for part in file.parent.glob("*.csv"):
        pd.read_csv(part).assign(HOMO_au=-0.2).to_csv(part, index=False)
    with pytest.raises(ValueError, match=r"^homo is the same for all 48 training molecules\."):
        QM9(str(file.parent))


def test_a_missing_package_and_a_wrong_folder_are_one_sentence(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=rf"^root={tmp_path}: {tmp_path} lacks qm9_part1.csv .*--make-fixture DIR"):
        QM9(str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^root=null needs the package qm9pack: pip install 'mtl-torch\[molecules\]'"):
        QM9()


# ------------------------------------------------------------------------------------------------------- training

KINDS = {
    "naive": ["strategy=naive"],
    "detached": ["strategy=detached"],
    "rule": ["strategy=mgda"],
    "rule on sums": ["strategy=mgda", "strategy.space=features_sum"],
    "rule on parameters": ["strategy=cagrad", "strategy.space=parameters"],
    "experts": ["architecture=mmoe", "strategy=nash_mtl"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_trains_and_goes_on_to_the_last_bit(root, kind):
    goes_on(configuration(*SMALL, f"data.root={root}", "trainer.max_steps=10", "scheduler=constant", *KINDS[kind]))


# What each option is compared with: it changes how the numbers are found, and nothing else, or rounding alone.
WAYS = {
    "compile": (["trainer.compile=true"], ["trainer.compile=false"], 1e-5),
    "pieces": (["data.batch_size=3", "trainer.accumulate_grad_batches=2", "trainer.accumulate=exact"], [], 1e-5),
    "bf16": (["trainer.precision=bf16"], [], 2e-2),
    "detached": (["strategy=naive"], ["strategy=detached"], 1e-5),
    "another seed": (["seed=1"], [], None),
}


@pytest.mark.parametrize("way", [pytest.param("compile", marks=pytest.mark.slow), *list(WAYS)[1:]])
def test_options_of_the_trainer_leave_the_training_as_it_is(root, way, train_tiny, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    common = [*SMALL, f"data.root={root}", "tasks=[mu,homo]", "optimizer=sgd", "trainer.log_every=1"]
    *both, tolerance = WAYS[way]
    rows = [read_metrics(train_tiny(*common, *own, folder=str(i)), "train") for i, own in enumerate(both)]
    losses = [[value for row in own for key, value in row.items() if key.startswith("loss/")] for own in rows]
    assert len(losses[0]) == 4 * 3
    difference = np.abs(np.subtract(*losses)).max()
    assert difference > 1e-2 if tolerance is None else difference < tolerance


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(root, tmp_path):
    cfg = load([*SMALL, f"data.root={root}", "strategy=mgda", "trainer.max_steps=3", "trainer.log_every=1"])
    train(cfg, tmp_path / "one")
    run_ranks(2, train, cfg, tmp_path / "two")
    for one, two in zip(*(read_metrics(tmp_path / name, "train") for name in ("one", "two")), strict=True):
        names = [key for key in one if key.startswith(("loss/", "weight/"))]
        assert {key: two[key] for key in names} == pytest.approx({key: one[key] for key in names}, rel=1e-4, abs=1e-5)


def test_a_run_is_resumed_to_the_last_bit_evaluated_and_predicts_without_its_data(
    root, table, train_tiny, tmp_path, monkeypatch
):
    copy = shutil.copytree(root, tmp_path / "data")
    run = [*SMALL, f"data.root={copy}", "tasks=[mu,u0_atom]", "strategy=gradvac", "scheduler=plateau"]
    whole = train_tiny(*run, folder="whole")
    parts = train_tiny(*run, "trainer.num_workers=1", folder="parts", stop_after=3)
    train_tiny(*run, "resume=auto", folder="parts")
    assert_same(left_by(whole), left_by(parts))
    assert not same(left_by(whole), left_by(train_tiny(*run, "seed=1", folder="other"))), "the negative control"

    measured = evaluate_checkpoint(whole / "checkpoints" / "best.pt", "test")
    names, (_, targets) = QM9(str(copy)).test.names, QM9(str(copy)).test.batch(range(8), 0)
    shutil.rmtree(copy)
    predictor = mtl.load(whole)
    assert predictor.units["u0_atom"] == "eV"
    predicted = predictor([raw(table, name) for name in names])
    for target in predictor.tasks:
        (mean,), (std,) = predictor.description["scales"][target]
        truth = targets[target].squeeze(1).double().numpy() * std + mean
        error = np.abs([own[target] for own in predicted] - truth).mean()
        assert error == pytest.approx(measured[f"{target}/abs_err"], rel=1e-5)
    with pytest.raises(ValueError, match="a molecule has the element 16; QM9 has"):
        predictor({"charges": [16], "positions": [[0.0, 0.0, 0.0]]})

    (tmp_path / "new").mkdir()
    for name in names:
        molecule = raw(table, name)
        atoms = [f"{SYMBOLS[charge]} {x} {y} {z}" for charge, (x, y, z) in zip(*molecule.values(), strict=True)]
        (tmp_path / "new" / name).write_text("\n".join([str(len(atoms)), name, *atoms]))
    monkeypatch.setattr("sys.argv", ["mtl-predict", str(whole), str(tmp_path / "new"), "--out", f"{tmp_path}/out.csv"])
    predict.main()
    rows = pd.read_csv(tmp_path / "out.csv").set_index("file")
    for name, own in zip(names, predicted, strict=True):
        assert rows["mu"][str(tmp_path / "new" / name)] == pytest.approx(own["mu"], rel=1e-5)


def test_the_study_runs_on_the_fixture(root, tmp_path):
    options = ["data.batch_size=4", "trainer.max_steps=2", "trainer.num_workers=0", "tracker=jsonl", "device=cpu"]
    train(load(["+experiment=qm9", f"data.root={root}", *options]), tmp_path / "run")
    (row,) = read_metrics(tmp_path / "run", "test")
    assert {f"{target}/abs_err" for target in QM9.targets} <= row.keys()


@pytest.mark.parametrize("architecture", ["nddr", "mtan", "lora"])
def test_an_architecture_that_needs_maps_or_vectors_is_refused_in_one_sentence(root, architecture):
    with pytest.raises(ConfigError) as caught:
        build(load([*SMALL, f"data.root={root}", f"architecture={architecture}"]))
    assert "\n" not in str(caught.value) and "must be float32" not in str(caught.value), "a mask is no image"
