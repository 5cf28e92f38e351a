"""Weights of this library as the published code would write them."""

import re

import atmnet
from torch import Tensor


def to_official(model: atmnet.ATMNet) -> dict[str, Tensor]:
    """The model's weights under the published names and shapes."""
    last = [len(stage.blocks) - 1 for stage in model.stages]
    patterns = [
        (r"stem\.", "patch_embed.proj."),
        (r"stages\.(\d+)\.peg\.", r"pos_blocks.\1.proj."),
        (r"stages\.(\d+)\.downsample\.", lambda m: f"blocks.{int(m[1]) - 1}.{last[int(m[1]) - 1]}.downsample.proj."),
        (r"stages\.(\d+)\.blocks\.(\d+)\.offset\.norm_", r"blocks.\1.\2.offset_layer.0."),
        (r"stages\.(\d+)\.blocks\.(\d+)\.offset\.", r"blocks.\1.\2.offset_layer.1."),
        (r"stages\.(\d+)\.blocks\.(\d+)\.mixer\.fc_", r"blocks.\1.\2.atm.atm_"),
        (r"stages\.(\d+)\.blocks\.(\d+)\.mixer\.logits\.", r"blocks.\1.\2.atm.fusion."),
        (r"stages\.(\d+)\.blocks\.(\d+)\.mixer\.", r"blocks.\1.\2.atm."),
        (r"stages\.(\d+)\.blocks\.(\d+)\.", r"blocks.\1.\2."),
        (r"head\.fc\.", "head."),
    ]
    weights = {}
    for name, value in model.state_dict().items():
        official = next((re.sub(f"^{ours}", theirs, name) for ours, theirs in patterns if re.match(ours, name)), name)
        weights[official] = value[..., None, None].clone() if re.search(r"atm_[hw]\.weight", official) else value.clone()
    return weights
