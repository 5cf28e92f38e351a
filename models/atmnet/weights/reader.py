"""Weights out of files: safetensors, ``last.pt`` of a training here, the authors' published files, those of timm and mmseg."""

from __future__ import annotations

import argparse
import errno
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from atm_triton.strict_json import dumps, loads

from .digest import digest_of
from .naming import OF_SEGMENTER, published_meta

PathLike = str | os.PathLike[str]
KINDS = (
    "an output folder of a training program, a folder of save_pretrained, hf-hub:USER/NAME, a .safetensors, a last.pt or a published .pth"
)
DIGEST = "digest"  # the key under which our files keep it
AVERAGED = "model_ema", "state_dict_ema"  # keys of others' averaged weights: the authors', timm's

# What our files say of a training, where they do.
MEANING: dict[str, tuple[type, ...]] = {
    "model": (str,),
    "num_classes": (int,),
    "img_size": (int,),
    "classes": (list,),
    "recipe": (dict,),
    "crop_pct": (int, float),
    "interpolation": (str,),
    "frames": (int,),
    "sampling": (str,),
    "frame_stride": (int,),
    "clips": (int,),
    "crops": (int,),
    "model_kwargs": (list, tuple),
    "head": (str,),
    "neck": (str,),
    "detector": (str,),
    "crop_size": (int,),
    "max_size": (int,),
}


@dataclass
class Checkpoint:
    """Weights with what is said of them."""

    path: Path
    weights: Mapping[str, Tensor]
    meta: dict[str, Any] = field(default_factory=dict)  # of training: model, num_classes, img_size, classes, recipe, ...
    published: bool = False  # named as in the authors' implementation
    averaged: bool = False
    config: Path | None = None  # the file that says it, where that is another

    @property
    def told_in(self) -> Path:
        """The file that says what is said."""
        return self.config or self.path


def read_checkpoint(checkpoint: PathLike, ema: bool | None = False, verify: bool = True) -> Checkpoint:
    """The weights in an output folder (its best), a ``.safetensors``, a ``last.pt``, or a ``.pth``, published or of timm or mmseg.

    Of a network of mmseg these are the backbone's, but of the authors' segmenters all.

    Args:
        ema: Take the averaged ones, of what holds both; None takes them of a published file, whose accuracy is theirs, and of no other.
        verify: Compare what is read with the digests in the file, where it has them.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it cannot be read, is damaged, has no averaged weights, or weights that are not finite.
    """
    path = Path(checkpoint)
    if os.path.isdir(path):  # unlike Path's, these take a name that is no name for a file that is not there
        names = ["best_ema.safetensors"] if ema else ["best.safetensors", "last.pt"]
        path = next((path / name for name in names if (path / name).is_file()), path / names[0])
    if not os.path.isfile(path):
        raise FileNotFoundError(f"there is no {path}; a checkpoint is {KINDS}")
    if path.suffix != ".safetensors":
        content = read_torch(path, verify=verify)
        weights = weights_in(content, str(path), bool(ema))
        if _of_ours(content):
            meta = content.get("meta")
            if not isinstance(meta, Mapping):
                raise ValueError(f"{path} is damaged: it does not say what it was trained as")
            found = Checkpoint(path, weights, check_meta(path, meta), averaged=bool(ema))
        else:
            found = _of_others(path, content, weights, bool(ema))
            if ema is None and found.published and any(content.get(key) is not None for key in AVERAGED):
                found = _of_others(path, content, weights_in(content, str(path), ema=True), averaged=True)
    elif ema and path.name != "best_ema.safetensors":
        raise ValueError(f"{path} holds one set of weights: averaged ones are in an output folder's best_ema.safetensors")
    else:
        found = replace(read_safetensors(path, verify), averaged=bool(ema))
        if "model" not in found.meta:  # not written here: a bare state dict
            bare = _of_others(path, {}, weights_in(found.weights, str(path), ema=False), found.averaged)
            found = replace(bare, meta=found.meta | bare.meta)
    check_finite(path, found.weights)
    return found


def _of_others(path: Path, content: Mapping[str, Any], weights: dict[str, Tensor], averaged: bool) -> Checkpoint:
    """Weights that were not written here. The authors' segmenters stay whole."""
    told = published_meta(content, weights)
    if told is None:
        weights = backbone_of(weights)
        told = published_meta(content, weights)
    return Checkpoint(path, weights, told or {}, told is not None, averaged)


def read_safetensors(path: PathLike, verify: bool = True) -> Checkpoint:
    """The content of one file, whatever its name; raises as ``read_checkpoint``."""
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            said = file.metadata() or {}
    except FileNotFoundError:
        raise
    except Exception as error:  # bytes that are no checkpoint can raise anything
        raise ValueError(
            f"{path} is not a safetensors file that can be read (atmnet.load_official takes published ones): {reason(error)}"
        ) from error
    expected = said.pop(DIGEST, None)
    if verify and expected is not None and digest_of([weights, said]) != expected:
        raise ValueError(f"{path} is damaged: it does not hold what was written")
    meta = {name: _parse(text) for name, text in said.items()}
    return Checkpoint(Path(path), check_weights(weights, str(path)), check_meta(path, meta))


def safetensors_metadata(weights: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> dict[str, str]:
    """Description of weights as safetensors holds it, text alone, JSON of what is none; and the digest of all that."""
    said = {name: value if isinstance(value, str) else dumps(value) for name, value in metadata.items()}
    return said | {DIGEST: digest_of([dict(weights), said])}


def read_torch(path: PathLike, mmap: bool = False, verify: bool = True) -> Mapping[str, Any]:
    """The content of a file of ``torch.save``, nothing of it executed, with ``mmap`` read when used; raises as ``read_checkpoint``."""
    try:
        if verify and zipfile.is_zipfile(path):  # PyTorch writes the sums of a zip file, and does not look at them
            with zipfile.ZipFile(path) as file:
                if part := file.testzip():
                    raise ValueError(f"the checksum of {part} is wrong")
        with torch.serialization.safe_globals([argparse.Namespace]):  # the published files hold their arguments too
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise
    except Exception as error:  # bytes that are no checkpoint can raise anything
        raise ValueError(
            f"{path} is not a checkpoint that can be read, or a damaged one (atmnet.load takes .safetensors): {reason(error)}"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a checkpoint")
    if verify and DIGEST in content and digest_of({key: value for key, value in content.items() if key != DIGEST}) != content[DIGEST]:
        raise ValueError(f"{path} is damaged: it does not hold what was written")
    return content


def weights_in(content: Mapping[str, Any], source: str, ema: bool) -> dict[str, Tensor]:
    """The state dict that a checkpoint's content holds or is, by the model's own names; raises as ``read_checkpoint``.

    It stands under ``model`` (here and in the published files) or ``state_dict`` (timm, mmseg). The prefixes of data parallelism and of
    torch.compile are taken off.
    """
    ours = _of_ours(content)
    keys = (("ema",) if ours else AVERAGED) if ema else ("model", "state_dict")[: 1 if ours else 2]
    weights = next((content[key] for key in keys if content.get(key) is not None), None)
    if weights is None and not ema and not ours:
        weights = content
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        averaged, places = "averaged " if ema else "", " or ".join(map(repr, keys))
        raise ValueError(f"{source} has no {averaged}weights under {places}; it has {', '.join(map(str, list(content)[:8]))}")
    return {_without_wrappers(name): value for name, value in check_weights(weights, source).items()}


def _without_wrappers(name: str) -> str:
    name = name.replace("_orig_mod.", "")  # of torch.compile, also of parts of the model
    while name.startswith("module."):  # of data parallelism, and of averages of such
        name = name.removeprefix("module.")
    return name


def backbone_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Backbone of mmseg's and mmdetection's models. Ours hold a whole timm model there, ``backbone.net`` or ``backbone.backbone``."""
    found = {name.removeprefix(OF_SEGMENTER): value for name, value in weights.items() if name.startswith(OF_SEGMENTER)}
    return dict(weights) if not found or any(name.startswith(("net.", "backbone.")) for name in found) else found


def check_weights(weights: Mapping[Any, Tensor], source: str) -> dict[str, Tensor]:
    """Refuse what no model's state dict holds; raises as ``read_checkpoint``."""
    for name, value in weights.items():
        if not isinstance(name, str):
            raise ValueError(f"{source} is no checkpoint: it holds a tensor by the name of {name!r}")
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            raise ValueError(f"{source} holds {name} as a tensor that is sparse, quantized or without values: save it as an ordinary one")
    return dict(weights)


def check_finite(path: PathLike, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights with which nothing can be computed."""
    broken = [name for name, value in weights.items() if value.is_floating_point() and not value.float().isfinite().all()]
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise ValueError(f"{path} holds weights that are not finite: {', '.join(broken[:5])}{more}. Take a checkpoint from before")


def check_meta(path: PathLike, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse what is said of weights where it is of another kind than what it should be; raises as ``read_checkpoint``."""
    recipe = meta.get("recipe")
    for said in (meta, recipe if isinstance(recipe, Mapping) else {}):
        for name, kinds in MEANING.items():
            value = said.get(name)
            if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
                raise ValueError(f"{path} is damaged, or not ours: it says {name} {str(value)[:40]!r}")
            if isinstance(value, int) and not 0 <= value < 2**31:
                raise ValueError(f"{path} is damaged, or not ours: it says {name} {str(value)[:40]!r}")
            if isinstance(value, (list, tuple)) and not all(isinstance(part, str) for part in value):
                raise ValueError(f"{path} is damaged, or not ours: its {name} are not all names")
        sizes = said.get("min_size")
        if sizes is not None and not (isinstance(sizes, (list, tuple)) and sizes and all(type(size) is int and size > 0 for size in sizes)):
            raise ValueError(f"{path} is damaged, or not ours: it says min_size {str(sizes)[:40]!r}")
    return dict(meta)


def read_json(path: PathLike) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: with the file's name, where it holds no JSON, or something else.
    """
    try:
        content = loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON that can be read: {reason(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not values by name")
    return content


def reason(error: BaseException) -> str:
    """Reason for what went wrong, in a line, without the advice to load a file by executing it."""
    text = str(error)
    if isinstance(error, (EOFError, IndexError)) or getattr(error, "errno", None) == errno.EINVAL:
        return "it breaks off"
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"it holds {found[1]}, which is no part of weights"
    if "mmap can only" in text or "weights_only" in text or "weights-only" in text.lower():
        return "it is no file of torch.save, or holds more than weights"
    line = " ".join(text.split())
    return f"{type(error).__name__}: {line[:400]}" if line else type(error).__name__


def _parse(text: str) -> Any:
    try:
        return loads(text)
    except (ValueError, RecursionError):
        return text


def _of_ours(content: Mapping[str, Any]) -> bool:
    return "progress" in content
