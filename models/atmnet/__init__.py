"""ATMNet: the backbones of the Active Token Mixer paper, registered with timm as ``atmnet_{xt,t,s,b,l}``."""

from .checkpoints import load, load_official, save
from .model import ATMNet
from .variants import VARIANTS, ATMNetFeatures, canonical_name

__all__ = ["VARIANTS", "ATMNet", "ATMNetFeatures", "canonical_name", "load", "load_official", "save"]
