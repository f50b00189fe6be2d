import torch

from mtl.conflict import conflict_metrics
from mtl.training.step_metrics import CosineAverage


def test_cosines_are_averaged_over_the_steps_in_which_both_tasks_were_there():
    conflicts = CosineAverage(["a", "b", "c"])
    assert conflicts.mean() is None
    first, second = torch.tensor([[1.0, 0.5], [0.5, 1.0]]), torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert conflicts.update(first, ["a", "c"]) == conflict_metrics(first, ["a", "c"])
    conflicts.update(second, ["a", "c"])
    mean = conflicts.mean()
    assert mean[0, 2] == mean[2, 0] == -0.25 and torch.isnan(mean[0, 1]) and mean[0, 0] == 1
    assert conflicts.mean() is None
