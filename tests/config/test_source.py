"""The arguments of a class as its source tells them, against those of the imported class."""

import inspect
import sys

import pytest
from hydra.utils import get_object

from mtl.config.source import arguments_of, can_be_found


@pytest.mark.parametrize(
    "target",
    [
        "mtl.strategies.Balanced", "mtl.backbones.Timm", "mtl.weightings.UW", "mtl.data.image_table.ImageTable",
        "torch.optim.AdamW", "torch.optim.lr_scheduler.CosineAnnealingLR", "timm.scheduler.CosineLRScheduler",
        "timm.optim.Lamb",
    ],
)  # fmt: skip
def test_the_source_tells_the_arguments_of_the_class(target):
    assert arguments_of(target) == [*inspect.signature(get_object(target)).parameters]


@pytest.mark.parametrize(
    "target", ["torch.nn.Linear", "torch.tensor", "nothing.at.All", "torch.nn.Nothing", "os.path.join"]
)
def test_it_says_so_where_the_source_does_not_tell(target):
    assert arguments_of(target) is None or arguments_of(target) == [*inspect.signature(get_object(target)).parameters]


def test_an_own_class_is_read_and_not_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_pkg").mkdir()
    (tmp_path / "own_pkg" / "__init__.py").write_text("from .deep import Real as Head\nraise RuntimeError\n")
    (tmp_path / "own_pkg" / "deep.py").write_text(
        "class Real:\n    def __init__(self, a, /, b, *, c=1): ...\n"
        "class Any(Real):\n    pass\n"
        "class Loose:\n    def __init__(self, a, **rest): ...\n"
        "def function(x, y): ...\n"
    )
    assert arguments_of("own_pkg.Head") == ["a", "b", "c"]
    assert arguments_of("own_pkg.deep.function") == ["x", "y"]
    assert arguments_of("own_pkg.deep.Any") is None and arguments_of("own_pkg.deep.Loose") is None
    assert can_be_found("own_pkg.x") and not can_be_found("own_pkgs.x")
    assert "own_pkg" not in sys.modules
