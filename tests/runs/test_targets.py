"""The code that a checkpoint may name by itself, and with its run's config.yaml."""

import pytest

from mtl.runs.targets import check_targets


def named(*targets):
    return {"heads": [{"_target_": target} for target in targets]}


def test_classes_of_trusted_packages_and_tensors_are_allowed(tmp_path):
    check_targets(tmp_path / "alone.pt", named("torch.nn.Linear", "mtl.heads.FPN", "torch.ones", "timm.layers.Mlp"))


@pytest.mark.parametrize("target", ["torch.load", "mtl.train.train", "os.system", "support.networks.Tiny"])
def test_functions_and_other_packages_are_refused_unless_the_run_names_them(tmp_path, target):
    checkpoint = tmp_path / "checkpoints" / "last.pt"
    checkpoint.parent.mkdir()
    with pytest.raises(ValueError, match=rf"last\.pt names {target}, and a checkpoint by itself may name classes"):
        check_targets(checkpoint, named("torch.nn.Linear", target))
    (tmp_path / "config.yaml").write_text(f"heads:\n  - _target_: {target}\n")
    check_targets(checkpoint, named("torch.nn.Linear", target))
