"""Configurations composed once: Hydra takes longer to compose one than the tests' runs to train."""

from functools import cache

from omegaconf import OmegaConf, open_dict

from mtl.config import CONF, load

composed = cache(lambda *overrides: load(overrides))


def configuration(*overrides):
    """What ``load`` gives. Those that differ in the choice of strategy and weighting only are composed once.

    Neither group's files have defaults of their own; tests/config/test_config.py has Hydra compose each of them.
    """
    choices = {}
    for group in ("strategy", "weighting"):
        own = [override for override in overrides if override.lstrip("+~").startswith((f"{group}=", f"{group}."))]
        if len(own) == 1 and own[0].startswith(f"{group}="):
            choices[own[0]] = group
    cfg = composed(*(override for override in overrides if override not in choices)).copy()
    for override, group in choices.items():
        own = OmegaConf.load(CONF / group / f"{override.partition('=')[2]}.yaml")
        assert "defaults" not in own, f"{override} must be composed"
        with open_dict(cfg):
            cfg[group] = own
    return cfg
