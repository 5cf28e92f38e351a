"""The authors' names: of their models, and of the parameters in their classifiers and, in mmsegmentation's layout, their segmenters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

MODELS = dict(ActivexTiny="atmnet_xt", ActiveTiny="atmnet_t", ActiveSmall="atmnet_s", ActiveBase="atmnet_b", ActiveLarge="atmnet_l")
OF_SEGMENTER = "backbone."

# Published name -> ours, first match wins. `blocks.i.j.downsample` stands in the last block of stage i and feeds stage i + 1.
RENAMES: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"patch_embed\.proj\.", r"stem."),
    (r"pos_blocks\.(\d+)\.proj\.", r"stages.\1.peg."),
    (r"blocks\.(\d+)\.\d+\.downsample\.proj\.", lambda m: f"stages.{int(m[1]) + 1}.downsample."),
    (r"blocks\.(\d+)\.(\d+)\.offset_layer\.0\.", r"stages.\1.blocks.\2.offset.norm_"),
    (r"blocks\.(\d+)\.(\d+)\.offset_layer\.1\.", r"stages.\1.blocks.\2.offset."),
    (r"blocks\.(\d+)\.(\d+)\.atm\.atm_([chw])\.", r"stages.\1.blocks.\2.mixer.fc_\3."),
    (r"blocks\.(\d+)\.(\d+)\.atm\.fusion\.", r"stages.\1.blocks.\2.mixer.logits."),
    (r"blocks\.(\d+)\.(\d+)\.atm\.", r"stages.\1.blocks.\2.mixer."),
    (r"blocks\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"head\.", r"head.fc."),
    (r"neck\.lateral_convs\.(\d+)\.conv\.", r"neck.laterals.\1."),
    (r"neck\.fpn_convs\.(\d+)\.conv\.", r"neck.outputs.\1."),
]


def from_official(name: str) -> str:
    """Name here of a published parameter. The heads of segmenters have the same names here."""
    if name.startswith(OF_SEGMENTER):
        inner = name.removeprefix(OF_SEGMENTER)
        of_map = re.sub(r"^norm_(\d+)\.", r"norms.\1.", inner)
        return f"backbone.net.{of_map}" if of_map != inner else f"backbone.net.model.{from_official(inner)}"
    for pattern, ours in RENAMES:
        renamed, found = re.subn("^" + pattern, ours, name)
        if found:
            return renamed
    return name


def published_meta(content: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Description of weights by a file of the authors: ``model``, or of a segmenter ``depths``, ``head``, ``num_classes`` and, where the
    file names them, ``classes``; None for any other file."""
    if "pos_blocks.0.proj.weight" in weights:
        model = MODELS.get(str(getattr(content.get("args"), "model", "")))
        return {"model": model} if model else {}
    classifier = weights.get("decode_head.conv_seg.weight")
    if f"{OF_SEGMENTER}pos_blocks.0.proj.weight" not in weights or classifier is None or not classifier.ndim:
        return None
    blocks = {(found[1], found[2]) for found in map(re.compile(r"backbone\.blocks\.(\d+)\.(\d+)\.").match, weights) if found}
    per_stage = Counter(stage for stage, _ in blocks)
    meta = content.get("meta")
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    named = isinstance(names, (list, tuple)) and len(names) == len(classifier) and all(isinstance(name, str) for name in names)
    return {
        "depths": tuple(per_stage[stage] for stage in sorted(per_stage)),
        "head": "upernet" if "decode_head.bottleneck.conv.weight" in weights else "semantic-fpn",
        "num_classes": len(classifier),
        **({"classes": list(names)} if named and names else {}),
    }
