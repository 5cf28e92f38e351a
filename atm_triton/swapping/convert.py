"""Conversion of a layer to the mixer that takes its place, and the weights with which that begins.

All but the published mixer, which keeps its weights and its function, begin with the fusion's logits at zero, so that the three branches
weigh a third each, and with offsets near zero, where all branches read the token itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from ..layers import EagerLayer
from .attention import convert_attention
from .convolution import convert_convolution
from .layers import Block
from .pointwise import convert_pointwise
from .published import convert_published, is_published
from .replacement import Options, Replacement, Unsuitable, note
from .windows import convert_windows

Converters = Mapping[type[nn.Module], Callable[[nn.Module], nn.Module]]


def convert(layer: nn.Module, ancestors: Sequence[nn.Module], options: Options, converters: Converters) -> Replacement:
    """Make what takes the place of ``layer``, or of its block where that is the smallest part with a mixer's input. Nothing changes yet.

    Args:
        layer: What is to be replaced.
        ancestors: The modules around it, the nearest first.
        options: How the mixer is made.
        converters: One's own, by the class of the layer; they come first.

    Raises:
        Unsuitable: the layer cannot be a mixer; it says why.
    """
    if isinstance(layer, EagerLayer | Block):
        raise Unsuitable("a mixer of this library already")
    if any(isinstance(ancestor, EagerLayer) for ancestor in ancestors):
        raise Unsuitable("part of a mixer of this library")
    for kind, converter in converters.items():
        if isinstance(layer, kind):
            return Replacement(layer, _converted(layer, kind, converter), note(layer, "by a converter of one's own"))
    if is_published(layer):
        return convert_published(layer)
    if options.start == "identity":
        return convert_pointwise(layer, options)
    if isinstance(layer, nn.Conv2d):
        return convert_convolution(layer, options)
    for known in (convert_windows, convert_attention):
        if found := known(layer, ancestors, options):
            return found
    raise Unsuitable("neither a published mixer, nor a Conv2d, nor a known attention: give converters={its class: function}")


def _converted(layer: nn.Module, kind: type[nn.Module], converter: Callable[[nn.Module], nn.Module]) -> nn.Module:
    new = converter(layer)
    if not isinstance(new, nn.Module) or new is layer:
        raise TypeError(f"the converter of {kind.__name__} must return the module that takes its place, got {new!r}")
    if not any(True for _ in new.parameters()):
        raise TypeError(f"the converter of {kind.__name__} returned a {type(new).__name__} without parameters")
    return new
