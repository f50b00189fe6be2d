"""Configurations composed once: Hydra takes longer to compose one than the tests' runs to train."""

from functools import cache

from omegaconf import OmegaConf, open_dict

from mtl.config import CONF, load

composed = cache(lambda *overrides: load(overrides))


def options(group):
    """What a group has to choose from; a file with a leading underscore is there to be inherited."""
    return sorted(path.stem for path in (CONF / group).glob("[!_]*.yaml"))


def option(group, name):
    """A file of a group, with the files of the group that it inherits."""
    own = OmegaConf.load(CONF / group / f"{name}.yaml")
    inherited = own.pop("defaults", [])
    return OmegaConf.merge(*(option(group, base) for base in inherited), own)


def configuration(*overrides):
    """What ``load`` gives. Those that differ in the choice of strategy and weighting only are composed once.

    tests/config/test_config.py has Hydra compose each of both groups' files, and compares.
    """
    choices = {}
    for group in ("strategy", "weighting"):
        own = [override for override in overrides if override.lstrip("+~").startswith((f"{group}=", f"{group}."))]
        if len(own) == 1 and own[0].startswith(f"{group}="):
            choices[own[0]] = group
    cfg = composed(*(override for override in overrides if override not in choices)).copy()
    for override, group in choices.items():
        with open_dict(cfg):
            cfg[group] = option(group, override.partition("=")[2])
    return cfg
