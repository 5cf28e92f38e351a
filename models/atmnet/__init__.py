"""ATMNet: the backbones of the Active Token Mixer paper, registered with timm as ``atmnet_{xt,t,s,b,l}``, and the networks for dense
prediction built on them or on any other timm backbone."""

from .dense.backbone import Backbone
from .dense.detection import create_detector
from .dense.layers import as_layers
from .dense.necks import ATMFPN, FPN
from .dense.segmentation import create_segmenter
from .model import ATMNet
from .predicting import predict, predict_video
from .variants import VARIANTS, ATMNetFeatures, canonical_name
from .weights.inflating import inflate
from .weights.opening import open_classifier, open_detector, open_model, open_segmenter
from .weights.published import load_official
from .weights.saved import load, save
from .weights.sharing import push_to_hub, save_pretrained

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
    "inflate",
    "load",
    "load_official",
    "open_classifier",
    "open_detector",
    "open_model",
    "open_segmenter",
    "predict",
    "predict_video",
    "push_to_hub",
    "save",
    "save_pretrained",
]
