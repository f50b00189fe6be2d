"""What tasks share, and what each head reads of it: one file an architecture, a class with ``trunk`` and ``reader``.

An architecture is made of ``backbone``, a callable that makes a fresh backbone, of ``tasks``, their names, of the run's
``seed`` where it has a use for it, and of its own arguments. It has

- ``trunk``: the module in the backbone's place, inputs -> common features (samples first, any nesting);
- ``reader(task)``: a private module, common features -> what one plain backbone would have returned; None where the
  common features are that already.

So every backbone and every head set works under every architecture. Modules of it may further have

- ``sharing_parameters()``: what decides the sharing, as gates; ``optimizer.sharing`` is for them;
- ``penalty()``, below a head: a scalar to be minimised beside the losses, of the last forward pass and for the mean
  sample, or None; it is given out once;
- ``at(step, steps)``: called before optimizer step ``step`` of ``steps``, for what changes in a run, as a temperature.
  What it sets is a function of the step alone, so that a resumed run goes on to the last bit;
- ``follow(gradient, target, factor)``, below a head: the task's gradient at the features and the direction that it is
  to be turned to, by ``strategy=rotograd``;
- ``logged()``, of the trunk or a reader: numbers of the last forward pass by name, a vector for several of one kind.
"""

from mtl.architectures.cgc import CGC
from mtl.architectures.cross_stitch import CrossStitch
from mtl.architectures.dselect_k import DSelectK
from mtl.architectures.ensemble import Ensemble
from mtl.architectures.film import FiLM
from mtl.architectures.hard import Hard
from mtl.architectures.lora import LoRA
from mtl.architectures.ltb import LTB
from mtl.architectures.mmoe import MMoE
from mtl.architectures.mtan import MTAN
from mtl.architectures.nddr import NDDR
from mtl.architectures.omoe import OMoE
from mtl.architectures.ple import PLE
from mtl.architectures.rotograd import RotoGrad

__all__ = [
    "CGC", "LTB", "MTAN", "NDDR", "PLE", "CrossStitch", "DSelectK", "Ensemble", "FiLM", "Hard", "LoRA", "MMoE", "OMoE",
    "RotoGrad",
]  # fmt: skip
