"""What a model finds on pictures: classes, masks or boxes."""

from .one import predict, predict_video, predictor

__all__ = ["predict", "predict_video", "predictor"]
