"""What turns the tasks' gradients, mostly through their Gram matrix, into one weight a task.

A rule is a module with ``forward(gram, losses=None) -> weights``; see ``Rule``. A rule that needs the rows
themselves (``needs_rows``) has ``combine(rows, gram, losses=None, present=None) -> (direction, weights)``
in its place; one that keeps something for each task (``per_task_state``) takes ``present`` too. The solvers
are exact to 1e-8 or raise ``SolverError``.
"""

from mtl.rules.aligned_mtl import AlignedMTL
from mtl.rules.cagrad import CAGrad
from mtl.rules.config import ConFIG
from mtl.rules.db_mtl import DBMTL
from mtl.rules.dualproj import DualProj
from mtl.rules.excess_mtl import ExcessMTL
from mtl.rules.fairgrad import FairGrad
from mtl.rules.graddrop import GradDrop
from mtl.rules.gradvac import GradVac
from mtl.rules.imtl_g import IMTLG
from mtl.rules.krum import Krum
from mtl.rules.mean import Mean
from mtl.rules.mgda import MGDA
from mtl.rules.moco import MoCo
from mtl.rules.nash_mtl import NashMTL
from mtl.rules.pcd import PCD
from mtl.rules.pcgrad import PCGrad
from mtl.rules.rotograd_scale import RotoGradScale
from mtl.rules.sdmgrad import SDMGrad
from mtl.rules.solvers import SolverError
from mtl.rules.sum import Sum
from mtl.rules.trimmed_mean import TrimmedMean
from mtl.rules.upgrad import UPGrad

__all__ = [
    "DBMTL",
    "IMTLG",
    "MGDA",
    "PCD",
    "AlignedMTL",
    "CAGrad",
    "ConFIG",
    "DualProj",
    "ExcessMTL",
    "FairGrad",
    "GradDrop",
    "GradVac",
    "Krum",
    "Mean",
    "MoCo",
    "NashMTL",
    "PCGrad",
    "RotoGradScale",
    "SDMGrad",
    "SolverError",
    "Sum",
    "TrimmedMean",
    "UPGrad",
]
