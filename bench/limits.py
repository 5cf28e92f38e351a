"""Limits: how fast a network can be on a device at best, of which speeds are shares. A network's sums up its layers' limits (work.py).

A network's layers are its convolutions, linear layers and operators. Norms, activations, drop path and sums move nothing of their own, for
a neighbour can compute them where it reads or writes; only a residual that is not its layer's input is read. So the limit asks for fusing
everything but two GEMMs in a row, and no implementation reaches 100 %. The optimizer is not in it.

python bench/limits.py --model atmnet-t --batch 128 --dtype bfloat16     the table; with --bandwidth and --flops, or --measure, times too
"""

from __future__ import annotations

import argparse
import math
import sys

import atmnet
import timm
import torch
from atmnet.variants import VARIANT_NAMES
from rich.console import Console
from rich.table import Table
from timing import quantiles
from torch import nn
from work import Ceilings, Layer, Tokens, limit, offset_fc, token_mix, total

from atm_triton import ActiveTokenMixer
from atm_triton.__main__ import device as parse_device

# ---- ATMNet


def model_name(text: str) -> str:
    """Name of an ATMNet, as timm knows it."""
    name = atmnet.canonical_name(text)
    if not timm.is_model(name) or not isinstance(timm.create_model(name), atmnet.ATMNet):  # not on_meta: some models read values
        raise argparse.ArgumentTypeError(f"{text} is no ATMNet: give one of {VARIANT_NAMES}")
    return name


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


def tokens(mixer: ActiveTokenMixer, batch: int, height: int, width: int) -> Tokens:
    return Tokens(batch, height, width, mixer.dim, mixer.dim // mixer.share)


def _convolution(name: str, conv: nn.Conv2d, batch: int, height: int, width: int, **more: bool) -> tuple[Layer, int, int]:
    """The layer, and the size of the image that it makes."""
    k, s, p = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    h, w = ((length + 2 * p - k) // s + 1 for length in (height, width))
    outputs = batch * h * w * conv.out_channels
    weights = sum(p.numel() for p in conv.parameters())
    flops = 2 * outputs * k * k * conv.in_channels // conv.groups
    return Layer(name, batch * height * width * conv.in_channels, outputs, weights, flops, **more), h, w


def _linear(name: str, fc: nn.Linear, rows: int, residual: int = 0) -> Layer:
    weights = sum(p.numel() for p in fc.parameters())
    return Layer(name, rows * fc.in_features, rows * fc.out_features, weights, 2 * rows * fc.in_features * fc.out_features, residual)


def network(model: atmnet.ATMNet, batch: int, size: tuple[int, int]) -> dict[str, list[Layer]]:
    """The layers of each part of the network, in order."""
    stem, height, width = _convolution("convolution", model.stem, batch, *size, data=True)
    parts = {"stem": [stem]}
    for number, stage in enumerate(model.stages, 1):
        layers = parts[f"stage {number}"] = []
        if stage.downsample is not None:
            layer, height, width = _convolution("convolution", stage.downsample, batch, height, width)
            layers.append(layer)
        for block in stage.blocks:
            shape = tokens(block.mixer, batch, height, width)
            if block.offset is not None:
                layers += [_convolution("PEG", stage.peg, batch, height, width)[0], offset_fc(shape)]
            rows = batch * height * width
            layers += [token_mix(shape), _linear("mlp.fc1", block.mlp.fc1, rows), _linear("mlp.fc2", block.mlp.fc2, rows, shape.size)]
    if isinstance(model.head.fc, nn.Linear):
        parts["head"] = [_linear("classifier", model.head.fc, batch)._replace(inputs=shape.size)]  # norm and pooling read all tokens
    return parts


def stages(model: atmnet.ATMNet, batch: int, size: tuple[int, int]) -> list[Tokens]:
    """The tokens that the mixers of each stage see."""
    _, height, width = _convolution("", model.stem, batch, *size)
    shapes = []
    for stage in model.stages:
        if stage.downsample is not None:
            _, height, width = _convolution("", stage.downsample, batch, height, width)
        shapes.append(tokens(stage.blocks[0].mixer, batch, height, width))
    return shapes


# ---- ceilings


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """A copy larger than any cache, and a GEMM large enough to be bound by arithmetic alone; medians."""
    gpu = device.type == "cuda"
    source = torch.empty(2**30 if gpu else 2**28, dtype=torch.uint8, device=device).random_(256)
    target = torch.empty_like(source)
    n = 8192 if gpu else 2048 if dtype == torch.float32 else 256  # in 16 bits a CPU may take a minute for 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    failed: dict[str, str] = {}
    times = quantiles({"copy": lambda: target.copy_(source), "product": lambda: torch.mm(a, b, out=out)}, device, 1, failed)
    if failed:
        raise RuntimeError(f"no ceilings: {failed}")
    return Ceilings(2 * source.numel() / (times["copy"].p50 / 1e3), 2 * n**3 / (times["product"].p50 / 1e3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=model_name, default="atmnet-t")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--img-size", type=int, nargs="+", default=[224], help="one number, or height and width")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--bandwidth", type=float, default=math.inf, help="copy bandwidth, GB/s")
    parser.add_argument("--flops", type=float, default=math.inf, help="rate of a GEMM, TFLOP/s")
    parser.add_argument("--measure", type=parse_device, metavar="DEVICE", help="measure both on this device")
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    if args.measure and args.measure.type == "cuda":
        torch.cuda.set_device(args.measure)
    ceilings = measure_ceilings(args.measure, dtype) if args.measure else Ceilings(args.bandwidth * 1e9, args.flops * 1e12)
    model = on_meta(args.model)
    size = args.img_size[0], args.img_size[-1]

    title = f"{args.model}, batch {args.batch}, {size[0]} x {size[1]}, {args.dtype}: forward, and with backward"
    table = Table("part", "layer", "count", title=title)
    for unit in ("MB", "GFLOP", "ms", "MB +b", "GFLOP +b", "ms +b"):
        table.add_column(unit, justify="right", no_wrap=True)

    def cells(layers: list[Layer]) -> list[str]:
        found = []
        for backward in (False, True):
            work, seconds = total(layers, dtype.itemsize, backward), limit(layers, dtype.itemsize, backward, ceilings)
            found += [f"{work.bytes / 1e6:.1f}", f"{work.flops / 1e9:.1f}", f"{1e3 * seconds:.3f}" if seconds else ""]
        return found

    parts = network(model, args.batch, size)
    for part, layers in parts.items():
        for layer, count in {layer: layers.count(layer) for layer in layers}.items():
            table.add_row(part, layer.name, str(count), *cells([layer] * count))
    table.add_section()
    table.add_row("all", "", "", *cells([layer for layers in parts.values() for layer in layers]))
    console = Console(width=None if sys.stdout.isatty() else 120, soft_wrap=True)
    console.print(table)
    if math.isfinite(ceilings.bandwidth + ceilings.rate):
        console.print(f"at {ceilings.bandwidth / 1e9:.0f} GB/s and {ceilings.rate / 1e12:.2f} TFLOP/s", highlight=False)


if __name__ == "__main__":
    main()
