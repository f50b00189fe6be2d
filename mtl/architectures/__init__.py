"""What tasks share, and what each head reads of it: one file an architecture, a class with ``trunk`` and ``reader``.

An architecture is made of ``backbone``, a callable that makes a fresh backbone, of ``tasks``, their names, and of its
own arguments. It has

- ``trunk``: the module in the backbone's place, inputs -> common features (samples first, any nesting);
- ``reader(task)``: a private module, common features -> what one plain backbone would have returned; None where the
  common features are that already.

So every backbone and every head set works under every architecture. Modules of it may further have

- ``sharing_parameters()``: what decides the sharing, as gates; ``optimizer.sharing`` is for them;
- ``penalty()``, below a head: a scalar to be minimised beside the losses, of the last forward pass and for the mean
  sample, or None; it is given out once;
- ``logged()``, of the trunk or a reader: numbers of the last forward pass by name, a vector for several of one kind.
"""

from mtl.architectures.cgc import CGC
from mtl.architectures.cross_stitch import CrossStitch
from mtl.architectures.dselect_k import DSelectK
from mtl.architectures.ensemble import Ensemble
from mtl.architectures.film import FiLM
from mtl.architectures.hard import Hard
from mtl.architectures.mmoe import MMoE
from mtl.architectures.mtan import MTAN
from mtl.architectures.nddr import NDDR
from mtl.architectures.omoe import OMoE
from mtl.architectures.ple import PLE

__all__ = ["CGC", "MTAN", "NDDR", "PLE", "CrossStitch", "DSelectK", "Ensemble", "FiLM", "Hard", "MMoE", "OMoE"]
