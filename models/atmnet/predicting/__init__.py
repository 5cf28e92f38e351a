"""What a model finds on pictures: classes, masks or boxes."""

from .one import predict, predictor

__all__ = ["predict", "predictor"]
