"""A folder or a column that is not there: the words, without torch, and no folder left behind."""

import subprocess
import sys
import unicodedata

import pytest
from omegaconf import OmegaConf

from mtl.config import load
from mtl.config.file_checks import TABLES, check_files
from mtl.data.image_table import make_fixture
from mtl.errors import ConfigError


@pytest.fixture
def root(tmp_path):
    make_fixture(tmp_path / "images")
    return tmp_path / "images"


def table(root, **keys):
    return OmegaConf.create({"_target_": next(iter(TABLES)), "root": str(root), "labels": "labels.csv", **keys})


FILES = ["nyuv2", "cityscapes", "celeba", "multimnist", "office", "taskonomy", "pascal_context", "paws_x",
         "image_table", "qm9", "table", "domain_tables"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_missing_folder_is_named_with_where_to_get_the_data(name, tmp_path):
    data = load([f"data={name}", f"data.root={tmp_path / 'no'}"]).data
    with pytest.raises(ConfigError) as caught:
        check_files(data)
    place = tmp_path / "no"
    assert str(caught.value).startswith(f"data.root={place}: there is no folder {place}: ")
    assert ("--make-fixture DIR" in str(caught.value)) != (name in ("image_table", "table"))


@pytest.mark.parametrize("target", ["torchvision.datasets.MNIST", f"{__name__}.Own", "mtl.data.digits.Digits"])
def test_another_data_set_may_make_its_folder(target, tmp_path):
    check_files(OmegaConf.create({"_target_": target, "root": str(tmp_path / "no")}))


@pytest.mark.parametrize(
    ("keys", "wrong", "hint"),
    [
        ({"targets": {"colour": "color"}}, "targets.colour=color", "did you mean colour? Its"),
        ({"targets": {"look": ["round", "stripes"]}}, "targets.look=stripes", "did you mean striped? Its"),
        ({"image": "path"}, "image=path", "its"),
        ({"split": "part"}, "split=part", "its"),
    ],
)
def test_a_misspelt_column_is_named_with_those_that_there_are(root, keys, wrong, hint):
    with pytest.raises(ConfigError) as caught:
        check_files(table(root, **keys))
    columns = f"{hint} columns are file, colour, round, striped, size."
    assert str(caught.value) == f"data.{wrong} is no column of {root / 'labels.csv'}; {columns}"
    check_files(table(root, targets={"colour": "colour", "look": ["round", "striped"]}, image="file", split=None))


@pytest.mark.parametrize(
    ("content", "column"),
    [
        ("file;größe;b\n0.png;1,5;2\n".encode(), "größe"),
        ("\ufefffile\tgröße\n0.png\t1\n".encode(), "größe"),
        ("file,größe\n0.png,1\n".encode("utf-16"), "größe"),
        (b'\n\n"file","a, b"\n0.png,1\n', "a, b"),
        (b"file,a,a\n0.png,1,2\n", "a.1"),  # pandas' own name of the second
        (b",file,a\n0,0.png,2\n", "Unnamed: 0"),
        ("file,größe\n0.png,1\n".encode("latin-1"), "größe"),  # another sentence says that this is no UTF-8
        (b"", "a"),
    ],
)
def test_a_column_that_pandas_would_find_is_let_through(root, content, column):
    (root / "labels.csv").write_bytes(content)
    check_files(table(root, targets={"a": column}))


def test_another_unicode_form_is_another_column(root):
    (root / "labels.csv").write_text("file,größe\n0.png,1\n")
    with pytest.raises(ConfigError, match="Its columns are file, größe"):
        check_files(table(root, targets={"a": unicodedata.normalize("NFD", "größe")}))


def test_a_table_that_is_not_there_is_named(root):
    with pytest.raises(ConfigError, match=r"data.root=.* lacks no.csv \(the labels\): give data.root=… the folder"):
        check_files(table(root, labels="no.csv"))
    with pytest.raises(ConfigError, match=r"lacks no\.parquet"):
        check_files(table(root, labels="no.parquet", targets={"a": "b"}))


WITHOUT_TORCH = """
import sys
from mtl.train import main
sys.argv[0] = "mtl-train"
try:
    main()
except SystemExit as end:
    loaded = {"torch", "pandas"} & {*sys.modules}
    sys.exit(f"loaded {loaded}" if loaded else end.code)
"""


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data=nyuv2"], "data.root has no value: give it one, as in data.root=….\n"),
        (["data=nyuv2", "data.root=no"], "data.root=no: there is no folder"),
        (["data=image_table", "data.root=images", "+data.targets.colour=color"], "data.targets.colour=color is no"),
        (["optimizer.lr=-1"], "optimizer.lr=-1 must be 0 or more.\n"),
    ],
)
def test_a_mistake_is_answered_without_torch_and_leaves_nothing_behind(root, overrides, words):
    before = {*root.parent.iterdir()}
    command = [sys.executable, "-c", WITHOUT_TORCH, *overrides]
    done = subprocess.run(command, cwd=root.parent, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(words) and done.stderr.count("\n") == 1, done.stderr
    assert {*root.parent.iterdir()} == before
