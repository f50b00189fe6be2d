"""A device of our own on the CPU: its tensors say ``meta``, hold numbers, and every time the host waits is counted.

``torch.cuda.set_sync_debug_mode`` tells the same on a GPU. What waits there: a number that Python reads (``item``,
``bool``, ``tolist``), a copy in either direction that is not ``non_blocking``, and operations whose shape depends on
the values (``nonzero``, an index by a mask). A plain tensor is the host's.
"""

from __future__ import annotations

import traceback
from collections import Counter
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from mtl.config import load
from mtl.config.build import build
from mtl.gradients.transfer import HostCopy
from mtl.system.timer import StepTimer
from mtl.tasks import loss_modules
from mtl.training.loaders import DeviceBatches, train_batches
from mtl.training.schedule import Plan
from mtl.training.update import Update

META = torch.device("meta")
aten = torch.ops.aten
SHAPED_BY_VALUES = {
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default, aten.bincount.default, aten.equal.default,
}  # fmt: skip


class OnDevice(torch.Tensor):
    """A tensor of the device; ``host`` has its numbers."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host):
        own = torch.Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            device=META, requires_grad=host.requires_grad,
        )  # fmt: skip
        own.host = host.detach()
        return own

    def __repr__(self):
        return f"OnDevice({self.host})"

    def tolist(self):
        return self.cpu().tolist()  # torch has none for subclasses

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class Waits(TorchDispatchMode):
    """Counts the waits while it is active: ``count``, and ``places``, by the line of ``mtl`` that waits.

    ``lacks_float64``: as MPS, the device has no float64, and making one is a TypeError.
    """

    active = None

    def __init__(self, lacks_float64=False):
        super().__init__()
        self.places = Counter()
        self.lacks_float64 = lacks_float64

    def __enter__(self):
        Waits.active = self
        return super().__enter__()

    def __exit__(self, *error):
        Waits.active = None
        return super().__exit__(*error)

    @property
    def count(self):
        return self.places.total()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is aten.lift_fresh.default and args[0].is_meta and not isinstance(args[0], OnDevice):
            raise AssertionError("a list became a tensor on the device: such a copy waits; use mtl.gradients.transfer")
        return _run(func, args, kwargs or {}, self)

    def add(self, func):
        frames = [f for f in traceback.extract_stack() if "/mtl/" in f.filename or "/support/" not in f.filename]
        own = [f for f in frames if "/mtl/" in f.filename and "/torch/" not in f.filename] or frames
        self.places[f"{own[-1].filename.rpartition('/mtl/')[2]}:{own[-1].lineno} {func}"] += 1


def _run(func, args, kwargs, waits=None):
    leaves = pytree.tree_leaves((args, kwargs))
    ours = any(isinstance(leaf, OnDevice) for leaf in leaves)
    target = kwargs.get("device")
    to_device = target is not None and torch.device(target) == META
    if not ours and not to_device:
        return func(*args, **kwargs)
    if waits is not None and _waits(func, args, kwargs, leaves, ours, to_device):
        waits.add(func)
    host_args, host_kwargs = pytree.tree_map_only(OnDevice, lambda x: x.host, (args, kwargs))
    if "device" in host_kwargs and (to_device or target is None):
        host_kwargs["device"] = torch.device("cpu")
    host_kwargs.pop("non_blocking", None)
    result = func(*host_args, **host_kwargs)
    if func is aten._to_copy.default and target is not None and not to_device:
        return result  # to the host
    if waits is not None and waits.lacks_float64 and _has_float64(result):
        raise TypeError(f"Cannot convert a tensor to float64: {func}")
    known = {id(leaf.host): leaf for leaf in leaves if isinstance(leaf, OnDevice)}  # in-place operations
    return pytree.tree_map_only(torch.Tensor, lambda x: known[id(x)] if id(x) in known else OnDevice(x), result)


def _has_float64(result):
    return any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in pytree.tree_leaves(result))


def _waits(func, args, kwargs, leaves, ours, to_device):
    if func is aten._local_scalar_dense.default or func in SHAPED_BY_VALUES:
        return True
    if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
        indices = [i for i in args[1] if i is not None]
        return any(i.dtype in (torch.bool, torch.uint8) or not isinstance(i, OnDevice) for i in indices)
    blocking = not kwargs.get("non_blocking", False)
    if func is aten._to_copy.default:
        across = isinstance(args[0], OnDevice) != (to_device or (kwargs.get("device") is None and ours))
        return across and blocking
    if func is aten.copy_.default:
        across = isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice)
        return across and not (len(args) > 2 and args[2]) and blocking
    return False


def to_device(module):
    """Move a module's parameters and buffers to the device, in place."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(OnDevice(parameter.detach()), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = OnDevice(buffer)
    return module


def moved(values):
    """A nesting of tensors on the device."""
    return pytree.tree_map_only(torch.Tensor, OnDevice, values)


class Training:
    """A run's own optimizer steps on the device, as ``fit`` takes them, without its evaluations and files."""

    def __init__(self, *choices, **options):
        cfg = load([
            "~backbone", "+backbone._target_=support.networks.Deterministic", "data.image_size=8", "data.batch_size=6",
            "+data.pairs_per_digit=1", "device=cpu", "tracker=jsonl", "trainer.max_steps=50", *choices,
        ])  # fmt: skip
        self.parts, self.state = build(cfg)
        places = {p: place for module in self._modules() for place in _places(module) for p in [place[0][place[1]]]}
        for module in self._modules():
            to_device(module)
        for group in self.state.optimizer.param_groups:
            group["params"] = [places[p][0][places[p][1]] for p in group["params"]]
        self.state.strategy.bind(self.state.model)  # its groups are of the parameters on the device
        self.parts.device = META
        self.plan = Plan.from_data(self.parts.data, cfg.trainer, cfg.conflict)
        timer = StepTimer(6, META, peak=0)
        self.batches = DeviceBatches(
            train_batches(self.parts.data, cfg, self.state, self.plan), timer, META, self.state.tasks
        )
        self.update = Update(self.state, self.parts, self.plan, cfg.trainer, timer)
        self.options = options

    def _modules(self):
        return self.state.model, loss_modules(self.state.tasks), self.state.strategy.weighting

    def steps(self, count, **asked):
        """The waits of each of the next steps."""
        found = []
        self.state.model.train()
        with self.batches as batches, steps_on_the_device():
            for _ in range(count):
                with Waits(**self.options) as waits:
                    self.update(batches, **asked)
                self.state.step += 1
                found.append(waits)
        return found


def _places(module):
    parts = [(part._parameters, name) for part in module.modules() for name in part._parameters]
    return [(own, name) for own, name in parts if own[name] is not None]


class CountedCopy(HostCopy):
    """A copy to the host that is read in the step which made it is a wait; a step later it has arrived."""

    def __init__(self, values):
        super().__init__(values)
        self.made = Waits.active if isinstance(values, OnDevice) else None

    def read(self):
        if self.made is not None and self.made is Waits.active:
            self.made.add("HostCopy")
        return super().read()


@contextmanager
def steps_on_the_device():
    """torch's fused optimizers accept the device, and what a step reads at once is counted."""
    with patch("torch.optim.adam._device_dtype_check_for_fused", lambda *_, **__: None), \
         patch("torch.optim.sgd._device_dtype_check_for_fused", lambda *_, **__: None), \
         patch("mtl.training.step_metrics.HostCopy", CountedCopy):  # fmt: skip
        yield
