"""FT-Transformer in stages is its authors' own."""

import sys

import pytest
import torch

from mtl.architectures.stages import stages
from mtl.backbones import FTTransformer

package = pytest.importorskip("rtdl_revisiting_models")


@pytest.mark.parametrize(("numbers", "categories"), [(3, [4, 7]), (3, []), (0, [4, 7])], ids=["both", "no", "only"])
def test_it_is_the_packages_own(numbers, categories):
    torch.manual_seed(0)
    ours = FTTransformer(numbers, categories, blocks=2).eval()
    torch.manual_seed(0)
    settings = package.FTTransformer.get_default_kwargs(2)
    theirs = package.FTTransformer(n_cont_features=numbers, cat_cardinalities=categories, d_out=None, **settings).eval()
    x = torch.randn(5, numbers)
    codes = torch.stack([torch.randint(v, (5,)) for v in categories], 1) if categories else torch.zeros(5, 0).long()
    found = ours({"numbers": x, "categories": codes})
    expected = theirs(x if numbers else None, codes if categories else None)
    assert torch.equal(found, expected) and found.shape == (5, 128)
    other = ours({"numbers": x + 1, "categories": (codes + 1) % 4})
    assert not torch.allclose(found, other, atol=1e-3), "the negative control"


def test_it_has_two_stages():
    first, second = stages(FTTransformer(3, [4]).eval()).units
    inputs = {"numbers": torch.randn(2, 3), "categories": torch.ones(2, 1).long()}
    assert first(inputs).shape == (2, 5, 192) and second(first(inputs)).shape == (2, 192)


def test_what_is_missing_or_wrong_is_said(monkeypatch):
    with pytest.raises(ValueError, match=r"^blocks=7 must be from 1 to 6"):
        FTTransformer(1, [], blocks=7)
    monkeypatch.setitem(sys.modules, "rtdl_revisiting_models", None)
    with pytest.raises(ValueError, match=r"needs the extra tables, as in pip install 'mtl-torch\[tables\]'"):
        FTTransformer(1, [])
