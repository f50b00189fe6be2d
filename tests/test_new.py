"""mtl-new, and the project that it makes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import Training

from mtl.new import PLACEHOLDER, TEMPLATE, create, main
from mtl.runs.files import read_metrics

SHORT = ["trainer.max_steps=2", "trainer.val_every=2", "tracker=jsonl"]


def test_a_project_has_the_files_of_the_template_under_its_own_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["mtl-new", "birds"])
    main()
    paths = [path for path in Path("birds").rglob("*") if path.is_file()]
    files = {"birds/data.py", "birds/heads.py", "conf/experiment/birds.yaml", "tests/test_birds.py", ".gitignore"}
    assert files <= {str(path.relative_to("birds")) for path in paths}
    assert not [path for path in paths if PLACEHOLDER in str(path) or PLACEHOLDER in path.read_text()]
    assert [path for path in TEMPLATE.rglob("*.yaml") if PLACEHOLDER in path.read_text()]  # there was some to replace
    assert "mtl-train -cd conf +experiment=birds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my-birds", "is no name of a Python package"),
        ("Birds", "is no name of a Python package"),
        ("class", "is no name of a Python package"),
        ("torch", "is an installed Python package"),
        ("taken", "is there already"),
    ],
)
def test_a_name_that_cannot_be_imported_is_one_sentence_and_leaves_nothing(tmp_path, name, said):
    (tmp_path / "taken").mkdir()
    with pytest.raises(ValueError, match=said):
        create(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["taken"]


def test_it_starts_without_torch():
    code = "import sys, mtl.new; assert not {'torch', 'hydra', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_its_command_trains(tmp_path):
    create(tmp_path / "birds")
    training = Training(tmp_path / "birds", "-cd", "conf", "+experiment=birds", *SHORT)
    training.start()
    assert training.wait() == 0, training.log.read_text()
    (folder,) = (path.parent for path in (tmp_path / "birds" / "outputs").rglob("summary.json"))
    assert {"colour/accuracy", "size/abs_err"} <= read_metrics(folder, "test")[0].keys()


@pytest.mark.slow
def test_its_own_tests_pass_and_can_fail(tmp_path):
    create(tmp_path / "birds")

    def test_it():
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        return subprocess.run(words, cwd=tmp_path / "birds", env=os.environ, capture_output=True, text=True)

    assert "3 passed" in test_it().stdout
    experiment = tmp_path / "birds" / "conf" / "experiment" / "birds.yaml"
    experiment.write_text(experiment.read_text().replace("birds.data.Blots", "birds.data.Blobs"))
    assert "Blobs" in (broken := test_it()).stdout and "1 failed, 2 passed" in broken.stdout
