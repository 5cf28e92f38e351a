"""A convolution becomes a mixer of maps. Its kernel is divided among the branches.

The kernel's centre is fc_c, and a tap dx columns and dy rows away from it goes to fc_w and fc_h as dx to dy. The projection is 3 times the
identity, with the convolution's bias. At offsets of zero the mixer answers a constant map as the convolution did, away from the borders.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers import ActiveTokenMixer2d
from .grouped import GroupedMixer2d
from .replacement import Options, Replacement, Unsuitable, begin, check_share, note


def convert_convolution(conv: nn.Conv2d, options: Options) -> Replacement:
    same = tuple(dilation * (k // 2) for dilation, k in zip(conv.dilation, conv.kernel_size, strict=True))
    if type(conv).forward is not nn.Conv2d.forward:
        raise Unsuitable("its class has a forward of its own")
    if conv.kernel_size == (1, 1):
        raise Unsuitable('1 x 1: it mixes no tokens; start="identity" takes it')
    if conv.stride != (1, 1):
        raise Unsuitable(f"stride {conv.stride[0]} x {conv.stride[1]}")
    if any(k % 2 == 0 for k in conv.kernel_size) or conv.padding not in ("same", same):
        raise Unsuitable(f"kernel {conv.kernel_size} with padding {conv.padding} has no centre, or changes the size of the map")
    if conv.padding_mode != "zeros":
        raise Unsuitable(f"padding_mode {conv.padding_mode!r}: a mixer reads zeros outside the map")
    if isinstance(conv.weight, nn.UninitializedParameter):
        raise Unsuitable("its channels are not known before it has been called")
    check_share(conv.in_channels, options.share)
    rows, columns = (torch.arange(k, device=conv.weight.device).sub(k // 2).abs() for k in conv.kernel_size)
    distance = (rows[:, None] + columns).clamp_min(1)
    weight = conv.weight.detach()
    branches = [(weight * (steps / distance)).sum((2, 3)) for steps in (columns, rows[:, None])]
    branches.append(weight[:, :, len(rows) // 2, len(columns) // 2])
    return mixer_of_maps(conv, branches, 3.0, options)


@torch.no_grad()
def mixer_of_maps(conv: nn.Conv2d, branches: list[Tensor], proj: float, options: Options) -> Replacement:
    """A mixer whose branches begin with weights ``[out, in / groups]``, and whose projection is ``proj`` times the identity."""
    share, groups, out_dim = options.share, conv.groups, conv.out_channels
    told = "" if groups == 1 else "every channel reaches every other" if options.dense else f"{groups} groups"
    if groups == 1 or options.dense:
        mixer = ActiveTokenMixer2d(conv.in_channels, share, out_dim=out_dim)
        branches, groups = [torch.block_diag(*branch.chunk(groups)) for branch in branches], 1
    else:
        mixer = GroupedMixer2d(conv.in_channels, share, groups, out_dim=out_dim)
    mixer.to(conv.weight).train(conv.training)
    begin(mixer, branches)
    mixer.proj.weight.copy_(proj * torch.eye(out_dim // groups).repeat(groups, 1))
    if conv.bias is not None:
        mixer.proj.bias.copy_(conv.bias)
    mixer.requires_grad_(conv.weight.requires_grad)
    return Replacement(conv, mixer, note(conv, told))
