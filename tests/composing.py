"""Configurations put together without Hydra, which takes longer to compose one than such a run to train."""

from omegaconf import OmegaConf, open_dict

from mtl.config import CONF


def chosen(composed, **groups):
    """A copy of a composed configuration with other choices: ``chosen(cfg, strategy="mgda")``.

    Of groups whose files have no defaults of their own. That Hydra composes them is in tests/test_config.py.
    """
    cfg = composed.copy()
    for group, choice in groups.items():
        own = OmegaConf.load(CONF / group / f"{choice}.yaml")
        assert "defaults" not in own, f"{group}={choice} must be composed"
        with open_dict(cfg):
            cfg[group] = own
    return cfg
