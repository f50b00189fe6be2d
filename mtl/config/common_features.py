"""Whether the tasks' gradients at the features have anything in common, found by trying before the first step."""

from __future__ import annotations

import logging
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils import _pytree as pytree

from mtl.config.dry_run import two_samples
from mtl.config.restored import restored
from mtl.errors import ConfigError
from mtl.gradients.cut import Cut
from mtl.model import MultiTaskModel

log = logging.getLogger(__name__)


def check_common_features(cfg: DictConfig, parts: Any, strategy: Any) -> None:
    """ConfigError for a rule at features of which every task reads some of its own; a warning where they are measured.

    Their Gram matrix is diagonal whatever the tasks demand of the trunk.
    """
    if strategy.space in ("parameters", "part") or not have_nothing_in_common(parts.model, parts.example):
        return
    if "rule" in cfg.strategy:
        raise ConfigError(
            f"strategy.space={strategy.space}: no two heads read a feature in common, so that the tasks' gradients "
            "there are orthogonal whatever they demand of the trunk; use strategy.space=parameters."
        )
    if cfg.conflict.every is not None or cfg.conflict.affinity_every:
        log.warning(
            "no two heads read a feature in common: the tasks' gradients at the features are orthogonal whatever they "
            "demand of the trunk, and affinities there 0; use conflict.every=null and conflict.affinity_every=0, or "
            "conflict.audit_every for the parameters"
        )


def have_nothing_in_common(model: MultiTaskModel, inputs: Any) -> bool:
    """Whether each of several features is read by one head at most."""
    if len(model.heads) < 2:
        return False
    with restored(model), torch.enable_grad():
        cut = Cut(model.eval().backbone(two_samples(inputs)))
        if len(cut.leaves) < 2:
            return False
        readers = [0] * len(cut.leaves)
        for head in model.heads.values():
            outputs = [out for out in pytree.tree_leaves(head(cut.features)) if _has_graph(out)]
            vectors = [torch.zeros_like(out) for out in outputs]
            found = torch.autograd.grad(outputs, cut.leaves, vectors, allow_unused=True) if outputs else ()
            readers = [n + (g is not None) for n, g in zip(readers, found, strict=True)] if outputs else readers
    return max(readers) == 1


def _has_graph(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
