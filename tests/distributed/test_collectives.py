"""The collectives on two ranks, and in a single process, where each returns its argument."""

import pytest
import torch
from support.ranks import run_ranks

from mtl.distributed import collectives
from mtl.distributed.collectives import get_rank


def use_all():
    rank = get_rank()
    whole, wide = torch.full((2, 2), rank + 1), torch.tensor([0.5, rank])
    collectives.all_reduce_coalesced([whole, wide])
    with pytest.raises(RuntimeError, match="seed is not the same on every rank: that of rank 1 differs"):
        collectives.check_same_on_all_ranks("seed", f"digest {rank}")
    collectives.check_same_on_all_ranks("seed", "digest")
    return {
        "rank": (rank, collectives.get_world_size(), collectives.is_distributed()),
        "all_reduce": collectives.all_reduce(torch.tensor([1.0, rank])).tolist(),
        "coalesced": (whole.tolist(), wide.tolist()),
        "any_rank": (collectives.any_rank(rank == 1), collectives.any_rank(False)),
        "all_gather_object": collectives.all_gather_object({"rank": rank}),
        "broadcast_object": collectives.broadcast_object(f"from {rank}"),
    }


def test_two_ranks_sum_gather_and_agree():
    first, second = run_ranks(2, use_all)
    assert first.pop("rank") == (0, 2, True)
    assert second.pop("rank") == (1, 2, True)
    assert first == second == {
        "all_reduce": [2, 1],
        "coalesced": ([[3, 3], [3, 3]], [1, 1]),
        "any_rank": (True, False),
        "all_gather_object": [{"rank": 0}, {"rank": 1}],
        "broadcast_object": "from 0",
    }  # fmt: skip


def test_a_single_process_keeps_its_values():
    values = torch.tensor([1.0, 2.0])
    assert collectives.all_reduce(values) is values
    collectives.all_reduce_coalesced([values])
    assert values.tolist() == [1, 2]
    assert (get_rank(), collectives.get_world_size(), collectives.is_distributed()) == (0, 1, False)
    assert collectives.any_rank(True)
    assert not collectives.any_rank(False)
    assert collectives.all_gather_object("a") == ["a"]
    assert collectives.broadcast_object("a") == "a"
    collectives.check_same_on_all_ranks("seed", "digest")
