import pytest
import torch

from mtl.gradients.cut import Cut
from mtl.gradients.gram import CHUNK
from mtl.gradients.rows import OuterProductRows, ParameterRows, Rows


def rows_of(*vectors):
    rows = Rows().start(len(vectors), [vectors[0]])
    for vector in vectors:
        rows.append([vector])
    return rows


def test_features_keep_their_nesting_and_what_is_not_differentiable():
    z = torch.randn(2, 3, requires_grad=True)
    features = {"a": (z * 2, [z * 3]), "ids": torch.arange(4), "note": "text", "none": None}
    cut = Cut(features)
    assert cut.features["note"] == "text" and cut.features["none"] is None
    assert cut.features["ids"] is features["ids"]
    assert isinstance(cut.features["a"], tuple) and isinstance(cut.features["a"][1], list)
    assert all(leaf.is_leaf and leaf.requires_grad for leaf in cut.leaves) and len(cut.leaves) == 2


@pytest.mark.parametrize("keep", [False, True], ids=["accumulated", "rows"])
def test_what_lands_goes_through_the_trunk_once_and_unread_leaves_are_left_out(keep):
    w = torch.tensor([2.0, 3.0], requires_grad=True)
    unread = torch.tensor([1.0], requires_grad=True)
    rows = Rows() if keep else None
    cut = Cut((w * w, unread * 2), rows)
    if keep:
        rows.start(2, cut.leaves)
    for factor in (1.0, 10.0):
        (cut.features[0] * factor).sum().backward()
        cut.collect()
    cut.backward()
    assert torch.equal(w.grad, 2 * w.detach() * 11)
    assert unread.grad is None
    if keep:
        assert rows.gram().tolist() == [[2.0, 20.0], [20.0, 200.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gram_matrix_of_long_rows_is_exact_where_one_matmul_is_not(dtype):
    """1e-6 of the largest diagonal entry at 2^22 elements, against float64; a single float32 matmul is the control."""
    torch.manual_seed(0)
    vectors = [(torch.randn(2**22) + i).to(dtype) for i in range(3)]
    exact = torch.stack([v.double() for v in vectors])
    exact = exact @ exact.T
    error = (rows_of(*vectors).gram() - exact).abs().max() / exact.diagonal().max()
    assert error <= 1e-6


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_rows_whose_squares_leave_float32(scale):
    a, b = torch.tensor([3.0, 4.0]) * scale, torch.tensor([4.0, 3.0]) * scale
    gram = rows_of(a, b).gram()
    assert gram[0, 1] / gram[0, 0] == pytest.approx(24 / 25, rel=1e-5)
    assert gram[0, 0] == pytest.approx(25 * scale**2, rel=1e-5)


def test_float64_rows_are_multiplied_in_float64():
    vector = torch.full((CHUNK + 3,), 1 + 1e-12, dtype=torch.float64)
    assert rows_of(vector).gram().item() == pytest.approx((CHUNK + 3) * (1 + 2e-12), rel=1e-13)


def test_buffers_are_kept_while_the_shapes_stay():
    leaf = torch.ones(4, 5)
    rows = Rows().start(3, [leaf])
    rows.append([leaf])
    kept = rows._buffers[0].data_ptr()
    assert rows.start(3, [leaf])._buffers[0].data_ptr() == kept and rows.count == 0
    rows.start(3, [torch.ones(4, 6)]).append([torch.ones(4, 6)])
    assert rows._buffers[0].shape == (3, 24)


def test_rows_that_are_outer_products_are_what_they_multiply_out_to():
    torch.manual_seed(0)
    leaf = torch.randn(3, 5, 4, dtype=torch.float64)
    errors, weights = torch.randn(15, 6, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    outer, plain = OuterProductRows(errors, weights, leaf), Rows().start(6, [leaf])
    for task in range(6):
        plain.append([(errors[:, task, None] * weights[task]).view(3, 5, 4)])
    scales = list(torch.rand(6, dtype=torch.float64))
    for _ in range(2):
        assert torch.allclose(outer.gram(), plain.gram(), rtol=1e-12)
        assert torch.allclose(outer.batch_summed_gram(), plain.batch_summed_gram(), rtol=1e-12)
        assert torch.allclose(outer.blocks()[0], plain.blocks()[0]) and len(outer.blocks()) == 1
        assert torch.allclose(outer.row(2)[0], plain.row(2)[0]) and outer.row(2)[0].shape == leaf.shape
        assert torch.allclose(outer.combine(torch.arange(6))[0], plain.combine(torch.arange(6))[0])
        assert outer.offsets_in_batch(2, 5) == plain.offsets_in_batch(2, 5)
        outer.scale(scales), plain.scale(scales)
    assert not torch.allclose(outer.gram(), OuterProductRows(errors, weights, leaf).gram())


def test_what_rows_at_the_parameters_give_lies_in_memory_as_the_parameters_do():
    """A fused optimizer goes through both in the order in which they lie there."""
    first = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    parameters = [first, torch.randn(5)]
    vectors = [torch.randn(p.numel()) for p in parameters]
    shaped = ParameterRows(parameters).unflatten(vectors)
    assert [g.stride() for g in shaped] == [p.stride() for p in parameters]
    assert all(torch.equal(g.flatten(), vector) for g, vector in zip(shaped, vectors, strict=True))
