"""Shared trunks: timm's models, and what timm lacks, for text, tables, molecules, small images. One file each."""

from mtl.backbones.convnet import ConvNet as ConvNet
from mtl.backbones.ft_transformer import FTTransformer as FTTransformer
from mtl.backbones.mpnn import MPNN as MPNN
from mtl.backbones.tabular import Tabular as Tabular
from mtl.backbones.text import TableText as TableText
from mtl.backbones.text import Text as Text
from mtl.backbones.theta import Theta as Theta
from mtl.backbones.timm import Timm as Timm
from mtl.backbones.transformer import CausalTransformer as CausalTransformer
