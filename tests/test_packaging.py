"""What a person gets who installs mtl: the name, the licence, the files, the commands."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import mtl

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NAME, EXTRAS = PROJECT["name"], set(PROJECT["optional-dependencies"])
SHORT = ["trainer.max_steps=2", "trainer.val_every=2", "tracker=jsonl"]
PLACES = ("mtl", "conf", "docs", "examples", "experiments", "template", "tests")


def install_lines(text):
    """The distribution and the extras of each ``NAME[extra,extra]`` that begins with mtl, as of pip's commands."""
    return [(name, extras.split(",")) for name, extras in re.findall(r"\b(mtl[\w-]*)\[([a-z,]+)\]", text)]


def test_install_lines_are_found():
    assert install_lines("needs pip install 'mtl[onnx,text]'.") == [("mtl", ["onnx", "text"])]


def test_every_install_line_names_the_distribution_and_extras_that_there_are():
    files = [path for place in PLACES for path in (ROOT / place).rglob("*.*") if path.suffix in (".py", ".md", ".yaml")]
    for path in [*files, *ROOT.glob("*.md"), ROOT / "pyproject.toml"]:
        if path == Path(__file__):
            continue
        for name, extras in install_lines(path.read_text()):
            assert name == NAME and set(extras) <= EXTRAS, f"{path}: {name}{extras}"


def test_the_citation_is_of_this_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (mtl.__version__, PROJECT["license"])
    assert f"## {mtl.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_command_has_a_main():
    for entry in PROJECT["scripts"].values():
        module, function = entry.split(":")
        assert f"\ndef {function}(" in ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is made of it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_sdist_and_wheel_have_what_they_need(built):
    sdist, wheel = built
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CITATION.cff", "conf/config.yaml", "tests/conftest.py"} <= names
    assert not any(name.startswith(("outputs/2", "outputs/digits", ".venv")) for name in names)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (licence,) = [name for name in names if name.endswith("licenses/LICENSE")]
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert {"mtl/py.typed", "mtl/conf/config.yaml", "mtl/template/my_project/data.py"} <= names
    assert "hydra_plugins/mtl_search.py" in names
    folders = {"mtl", "hydra_plugins", wheel.name.rsplit("-", 3)[0] + ".dist-info"}
    assert {name.split("/")[0] for name in names} == folders


@pytest.mark.slow
def test_an_unpacked_wheel_finds_its_configuration(built, tmp_path, command):
    zipfile.ZipFile(built[1]).extractall(tmp_path / "site")
    done = command("mtl.train", *SHORT, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    shown = command("mtl.train", "--info", "searchpath", PYTHONPATH=str(tmp_path / "site"))
    assert str(tmp_path / "site" / "mtl" / "conf") in shown.stdout


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", "3.13"])
def test_an_installed_wheel_works(built, tmp_path, version):
    """With all that it depends on, in an environment that has nothing else; far from the repository."""
    python = shutil.which(f"python{version}")
    if python is None or subprocess.run([python, "-c", "import ensurepip"], capture_output=True).returncode:
        pytest.skip(f"there is no Python {version}")

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words):
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(python, "-m", "venv", "fresh")
    binaries = tmp_path / "fresh" / "bin"
    try:
        run(binaries / "python", "-m", "pip", "install", "--quiet", built[1])
        assert f"Version: {mtl.__version__}" in run(binaries / "python", "-m", "pip", "show", NAME)
        run(binaries / "mtl-train", *SHORT, "name=tiny")
        (folder,) = (path.parent for path in tmp_path.glob("outputs/tiny/*/*/summary.json"))
        assert '"left/accuracy"' in run(binaries / "mtl-eval", folder)
        assert "tiny" in run(binaries / "mtl-report", "outputs/tiny")
        for command in PROJECT["scripts"]:
            assert run(binaries / command, "--help")
    finally:
        shutil.rmtree(tmp_path / "fresh")  # some gigabytes


def test_the_workflow_runs_the_projects_own_checks_on_the_oldest_and_the_newest_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    tried = job["strategy"]["matrix"]["include"]
    assert job["steps"][-1]["run"] == "${{ matrix.run }}" and ".ci/run" in [each["run"] for each in tried]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    oldest, above = re.findall(r"3\.(\d+)", PROJECT["requires-python"])
    minors = [int(each["python"].partition(".")[2]) for each in tried]
    assert (min(minors), max(minors)) == (int(oldest), int(above) - 1)
    assert "secrets." not in str(workflow)
