"""Metrics of each kind of target: those of torchmetrics, and some that it lacks.

There is one function per kind of target, which returns new metrics by name. They accumulate sums over the whole set in
constant memory, and the sums are added over processes; only rankings, as ``auc``, keep every prediction, to be exact.
Missing labels (see mtl.losses) are ignored.

Names that end in ``_batch_mean`` follow MTAN, Nash-MTL and their successors: the mean over batches of each batch's mean
or median. Names without the suffix follow LibMTL: the mean over all pixels. The two differ for one and the same model.
"""

from mtl.metrics.angles import MedianAngle as MedianAngle
from mtl.metrics.angles import Within as Within
from mtl.metrics.angles import angle as angle
from mtl.metrics.angles import normals as normals
from mtl.metrics.binary import FromLogits as FromLogits
from mtl.metrics.binary import LogitAccuracy as LogitAccuracy
from mtl.metrics.binary import LogitF1 as LogitF1
from mtl.metrics.binary import LogitsAccuracy as LogitsAccuracy
from mtl.metrics.binary import LogitsF1 as LogitsF1
from mtl.metrics.binary import MaxF as MaxF
from mtl.metrics.binary import MaxIoU as MaxIoU
from mtl.metrics.binary import attributes as attributes
from mtl.metrics.binary import edges as edges
from mtl.metrics.binary import saliency as saliency
from mtl.metrics.classes import ClassAccuracy as ClassAccuracy
from mtl.metrics.classes import ClassJaccardIndex as ClassJaccardIndex
from mtl.metrics.classes import FromProbabilities as FromProbabilities
from mtl.metrics.classes import LogLoss as LogLoss
from mtl.metrics.classes import classification as classification
from mtl.metrics.classes import probabilities as probabilities
from mtl.metrics.classes import segmentation as segmentation
from mtl.metrics.direction import higher_is_better as higher_is_better
from mtl.metrics.masked import MaskedMean as MaskedMean
from mtl.metrics.numbers import ColumnR2 as ColumnR2
from mtl.metrics.numbers import counts as counts
from mtl.metrics.numbers import depth as depth
from mtl.metrics.numbers import determination as determination
from mtl.metrics.numbers import regression as regression
from mtl.metrics.numbers import standardised as standardised
from mtl.metrics.rankings import ClassAuc as ClassAuc
from mtl.metrics.rankings import ClassAveragePrecision as ClassAveragePrecision
from mtl.metrics.rankings import LabelsMean as LabelsMean
from mtl.metrics.rankings import LogitAuc as LogitAuc
from mtl.metrics.rankings import LogitAveragePrecision as LogitAveragePrecision
from mtl.metrics.rankings import OfTwo as OfTwo
from mtl.metrics.rankings import Ranking as Ranking
from mtl.metrics.rankings import ranking as ranking
from mtl.metrics.text import BitsPerByte as BitsPerByte
