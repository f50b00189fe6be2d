import random
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from mtl.data.loader import Batches, EndlessSampler, sequential


class Noisy(Dataset):
    """Samples with randomness from every generator that an augmentation may use."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.tensor([index, torch.rand(()), random.random(), np.random.rand()]), {"t": torch.tensor(index)}


def batches(count, start=0, seed=0, workers=0, shuffle=True):
    keys = EndlessSampler(20, 6, 3, seed, start, shuffle)
    return [inputs for inputs, _ in islice(Batches(Noisy(), keys, seed, workers), count)]


def test_an_epoch_holds_every_sample_at_most_once_and_epochs_differ():
    epochs = [torch.cat(batches(3, start))[:, 0].tolist() for start in (0, 3)]
    assert all(len(set(epoch)) == 18 for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("start", [1, 3, 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_batch_number_n_is_the_same_however_the_run_came_to_it(start, workers):
    whole = batches(8)
    for a, b in zip(whole[start:], batches(8 - start, start, workers=workers), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(whole[start], batches(1, start, seed=1)[0])  # negative control


def test_drawing_samples_leaves_the_global_generators_alone():
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = torch.rand(()), random.random(), np.random.rand()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    batches(2)
    assert (torch.rand(()), random.random(), np.random.rand()) == expected


def test_without_shuffling_every_epoch_is_the_first_one():
    first = batches(3, shuffle=False)
    assert torch.cat(first)[:, 0].tolist() == list(range(18))
    assert torch.equal(batches(1, start=3, shuffle=False)[0], first[0])


def test_an_evaluation_sees_every_sample_once_in_order():
    keys = sequential(20, 6)
    assert [i for _, batch in keys for i in batch] == list(range(20))
    assert [len(batch) for _, batch in keys] == [6, 6, 6, 2]
    assert len(sequential(20, 6, limit=2)) == 2


def test_a_sample_seeds_no_devices_generator(monkeypatch):
    """Its state would not be restored: dropout masks on a GPU would depend on the sample that was read last."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    batches(2)
    assert not seeded
    torch.manual_seed(0)
    assert seeded == [0]  # negative control: torch's own would be seen
