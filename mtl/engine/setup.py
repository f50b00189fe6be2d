"""Preparing a model for its run: compilation, activation checkpointing, chunks of a batch, several ranks."""

from __future__ import annotations

import gc
import logging
import platform
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mtl.distributed.collectives import all_gather_object, get_world_size, is_distributed
from mtl.distributed.data_parallel import all_parameters_used, broadcast_parameters, data_parallel
from mtl.distributed.sharding import shard
from mtl.engine.accumulation import RecomputedChunks
from mtl.model import MultiTaskModel
from mtl.tasks import loss_modules

log = logging.getLogger(__name__)


def prepare(parts: Any, strategy: Any, trainer: Any) -> None:
    """Prepare the model by the trainer's settings. ValueError, with the key, for a setting that is impossible here."""
    engine, model, device = parts.engine, parts.model, parts.device
    if strategy.draws > 1:
        _check_draws(strategy, trainer)
    if is_distributed():
        _check_ranks(parts, strategy, trainer)
        broadcast_parameters(model, loss_modules(parts.tasks))
        if trainer.sync_batchnorm:
            from mtl.distributed.sync_batchnorm import synchronised

            model.backbone, model.heads = synchronised(model.backbone, device), synchronised(model.heads, device)
    if trainer.grad_checkpointing:
        _recompute_activations(model.backbone)
    if trainer.compile:
        _compile(model)
    if trainer.shard is not None:
        _shard(model, strategy, trainer)
    if trainer.grad_checkpointing or _in_chunks(trainer):
        _update_statistics_once(model.backbone, trainer.compile)
    engine.wrapped = _wrapped(parts, trainer)


def unfreeze(parts: Any, trainer: Any) -> None:
    """Train from now on what ``freeze`` has named, as if the model had been prepared so."""
    parts.engine.wrapped = None
    gc.collect()  # a former DistributedDataParallel would go on reducing the gradients
    parts.model.unfreeze()
    with torch.random.fork_rng():
        parts.engine.wrapped = _wrapped(parts, trainer)


def _in_chunks(trainer: Any) -> bool:
    return trainer.accumulate == "exact" and trainer.accumulate_grad_batches > 1


def _wrapped(parts: Any, trainer: Any) -> nn.Module | None:
    """The backbone as training steps call it, in chunks and over ranks; None where that is the backbone itself."""
    backbone = trunk = parts.model.backbone
    if _in_chunks(trainer):
        trunk = RecomputedChunks(trunk, trainer.accumulate_grad_batches)
    if is_distributed() and trainer.shard is None and any(p.requires_grad for p in trunk.parameters()):
        trunk = data_parallel(trunk, parts.device, all_parameters_used(backbone, parts.example))
    return None if trunk is backbone else trunk


def _check_draws(strategy: Any, trainer: Any) -> None:
    name = type(strategy).__name__
    if is_distributed():
        raise ValueError(f"trainer.devices={get_world_size()} must be 1: {name} looks at its batches in one process.")
    if trainer.grad_checkpointing:
        raise ValueError(
            f"trainer.grad_checkpointing=true: {name} looks at batches with every activation, and perhaps at other "
            "parameters, which a second forward pass would not see; use false."
        )


def _check_ranks(parts: Any, strategy: Any, trainer: Any) -> None:
    ranks, samples = get_world_size(), min(len(parts.data.train), parts.data.batch_size)
    if samples < ranks:
        raise ValueError(
            f"trainer.devices={ranks} must be at most {samples}, for every process needs a sample of each batch "
            f"(data.batch_size={parts.data.batch_size}, {len(parts.data.train)} training samples)."
        )
    where = all_gather_object(f"{platform.node()}: {parts.device}")
    if parts.device.type != "cpu" and len(set(where)) < ranks:
        raise ValueError(f"device={parts.device} is that of several processes; every one needs its own: device=cuda.")
    rule = getattr(strategy, "rule", None)
    if getattr(rule, "needs_rows", False) and strategy.space == "features" and not getattr(rule, "elementwise", False):
        raise ValueError(
            f"strategy.space=features: {type(rule).__name__} works on whole rows, and with several processes each has "
            "the features of its own samples only; use strategy.space=parameters."
        )
    shared = set(parts.model.shared_parameters())
    for name, parameter in parts.model.heads.named_parameters():
        if parameter in shared:
            raise ValueError(f"heads.{name} is the backbone's parameter as well, which only one process can train.")


# ------------------------------------------------------------------------------------- activation checkpointing


def _recompute_activations(backbone: nn.Module) -> None:
    """timm's activation checkpointing in every model inside; ValueError where there is none, or one without it."""
    models = list(_outermost_with_setter(backbone))
    if not models:
        raise ValueError(
            f"trainer.grad_checkpointing=true: {type(backbone).__name__} has no set_grad_checkpointing; leave it "
            "out, or use a timm model or backbone=text under an architecture that keeps them whole, as hard or mmoe."
        )
    for model in models:
        try:
            model.set_grad_checkpointing(True)
        except (AssertionError, NotImplementedError) as error:
            raise ValueError(
                f"trainer.grad_checkpointing=true: timm's {type(model).__name__} has no activation checkpointing."
            ) from error


def _outermost_with_setter(module: nn.Module) -> Iterator[Any]:
    """The modules with ``set_grad_checkpointing``, which see to what is inside of them."""
    if callable(getattr(module, "set_grad_checkpointing", None)):
        yield module
    else:
        for child in module.children():
            yield from _outermost_with_setter(child)


def _update_statistics_once(backbone: nn.Module, compiled: bool) -> None:
    """Layers that recompute their forward pass during the backward pass update their running statistics once only."""
    for module in backbone.modules() if not compiled else ():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.register_forward_pre_hook(_freeze_statistics)
            module.register_forward_hook(_unfreeze_statistics, always_call=True)


def _freeze_statistics(norm: Any, inputs: Any) -> None:
    if norm.training and torch._C._current_graph_task_id() != -1:  # inside of a backward pass
        norm.momentum_before = norm.momentum
        norm.momentum = 0.0


def _unfreeze_statistics(norm: Any, inputs: Any, output: Any) -> None:
    if hasattr(norm, "momentum_before"):
        norm.momentum = norm.momentum_before
        norm.num_batches_tracked -= 1
        del norm.momentum_before


# ------------------------------------------------------------------------------------------------ compilation


def _compile(model: MultiTaskModel) -> None:
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch

    # Heads of one class share their code's cache; beyond its limit torch runs uncompiled and hardly says so.
    dynamo.recompile_limit = max(dynamo.recompile_limit, 4 * len(model.heads))
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 16 * len(model.heads))
    # A backward pass may overwrite donated buffers, but a graph that is kept for another pass needs them.
    functorch.donated_buffer = False
    for module in (model.backbone, *model.heads.values()):
        module.compile()


class RecompileWarning:
    """A warning when torch compiles again after the first steps, which costs seconds each time."""

    def __init__(self, model: MultiTaskModel, warm_up: int = 3) -> None:
        self._on, self._steps, self._graphs = model.is_compiled(), warm_up, 0

    def check(self, step: int) -> None:
        """Warn of new graphs; call it after each step."""
        if not self._on:
            return
        from torch._dynamo.utils import counters

        graphs = counters["stats"]["unique_graphs"]
        self._steps -= 1
        if self._steps < 0 and graphs > self._graphs:
            log.warning(
                "trainer.compile: torch has compiled %d more graphs in step %d; a batch of another size or task does "
                "that, and TORCH_LOGS=recompiles says why.", graphs - self._graphs, step,
            )  # fmt: skip
        self._graphs = graphs


# --------------------------------------------------------------------------------------------------- sharding


def _shard(model: MultiTaskModel, strategy: Any, trainer: Any) -> None:
    """Shard the parameters, their gradients and the optimizer's state over the ranks (FSDP2)."""
    if getattr(strategy, "space", None) in ("parameters", "part"):
        raise ValueError(
            f"trainer.shard={trainer.shard}: no rank has whole rows over the parameters; use strategy.space=features "
            "or trainer.shard=null."
        )
    if getattr(strategy, "has_members", False):
        raise ValueError(
            f"trainer.shard={trainer.shard} cannot go with strategy=pareto_manifold, whose parameters are mixtures of "
            "members; use null."
        )
    if trainer.shard == "all" and not strategy.runs_every_head:
        raise ValueError(
            "trainer.shard=all: with strategy=naive a process without labels of a task does not run its head, and the "
            "others would wait for it; use strategy=detached, whose gradient is the same, or trainer.shard=backbone."
        )
    if trainer.shard == "all" and getattr(strategy, "rotates", False):
        raise ValueError("trainer.shard=all: no rank has whole rotations; use trainer.shard=backbone or null.")
    if trainer.ema is not None:
        raise ValueError(f"trainer.shard={trainer.shard} cannot go with trainer.ema={trainer.ema}: leave one out.")
    if not is_distributed():
        raise ValueError(f"trainer.shard={trainer.shard} needs more than one process: trainer.devices=….")
    shard(model.backbone, *(model.heads.values() if trainer.shard == "all" else ()))
