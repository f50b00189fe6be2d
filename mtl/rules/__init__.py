"""Balancing rules: each turns the task gradients, mostly through their Gram matrix, into one weight per task.

A rule is a module with ``forward(gram, losses=None) -> weights``; see :class:`Rule`. A rule that needs the task
gradients themselves (``needs_rows``) has ``combine(rows, gram, losses=None, present=None) -> (direction, weights)``
instead. A rule with state per task (``per_task_state``) takes ``present`` too. The solvers are exact to 1e-8 or raise
:class:`SolverError`. One file per rule, one line per rule here.
"""

from mtl.rules.aligned_mtl import AlignedMTL as AlignedMTL
from mtl.rules.cagrad import CAGrad as CAGrad
from mtl.rules.config import ConFIG as ConFIG
from mtl.rules.db_mtl import DBMTL as DBMTL
from mtl.rules.dualproj import DualProj as DualProj
from mtl.rules.epo import EPO as EPO
from mtl.rules.excess_mtl import ExcessMTL as ExcessMTL
from mtl.rules.fairgrad import FairGrad as FairGrad
from mtl.rules.graddrop import GradDrop as GradDrop
from mtl.rules.gradvac import GradVac as GradVac
from mtl.rules.imtl_g import IMTLG as IMTLG
from mtl.rules.krum import Krum as Krum
from mtl.rules.mean import Mean as Mean
from mtl.rules.mgda import MGDA as MGDA
from mtl.rules.moco import MoCo as MoCo
from mtl.rules.nash_mtl import NashMTL as NashMTL
from mtl.rules.pcd import PCD as PCD
from mtl.rules.pcgrad import PCGrad as PCGrad
from mtl.rules.rotograd_scale import RotoGradScale as RotoGradScale
from mtl.rules.rule import Rule as Rule
from mtl.rules.sdmgrad import SDMGrad as SDMGrad
from mtl.rules.solvers import SolverError as SolverError
from mtl.rules.sum import Sum as Sum
from mtl.rules.trimmed_mean import TrimmedMean as TrimmedMean
from mtl.rules.upgrad import UPGrad as UPGrad
