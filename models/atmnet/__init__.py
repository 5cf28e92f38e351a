"""ATMNet: the backbones of the Active Token Mixer paper, registered with timm as ``atmnet_{xt,t,s,b,l}``, and the networks for dense
prediction built on them or on any other timm backbone."""

from .backbone import Backbone
from .checkpoints import load, load_official, save
from .detection import create_detector
from .layers import as_layers
from .model import ATMNet
from .necks import ATMFPN, FPN
from .pretrained import open_classifier
from .segmentation import create_segmenter
from .variants import VARIANTS, ATMNetFeatures, canonical_name

__all__ = [
    "ATMFPN",
    "FPN",
    "VARIANTS",
    "ATMNet",
    "ATMNetFeatures",
    "Backbone",
    "as_layers",
    "canonical_name",
    "create_detector",
    "create_segmenter",
    "load",
    "load_official",
    "open_classifier",
    "save",
]
