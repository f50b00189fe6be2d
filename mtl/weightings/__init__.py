"""Loss weightings: each scales a task's loss before that task's own backward pass.

A weighting is a module with ``forward(task, loss) -> scaled loss``, or with ``weights(losses)`` if it needs the losses
of all tasks first; see :class:`Weighting`. One file per weighting, one line per weighting here.
"""

from mtl.weightings.cosmos import COSMOS as COSMOS
from mtl.weightings.derivative import weight_of as weight_of
from mtl.weightings.dwa import DWA as DWA
from mtl.weightings.equal import Equal as Equal
from mtl.weightings.famo import FAMO as FAMO
from mtl.weightings.gls import GLS as GLS
from mtl.weightings.go4align import GO4Align as GO4Align
from mtl.weightings.gradnorm import GradNorm as GradNorm
from mtl.weightings.imtl_l import IMTLL as IMTLL
from mtl.weightings.log import Log as Log
from mtl.weightings.pbi import PBI as PBI
from mtl.weightings.random import Random as Random
from mtl.weightings.static import Static as Static
from mtl.weightings.stch import STCH as STCH
from mtl.weightings.tchebycheff import Tchebycheff as Tchebycheff
from mtl.weightings.uw import UW as UW
from mtl.weightings.uw_so import UWSO as UWSO
from mtl.weightings.weighting import Weighting as Weighting
