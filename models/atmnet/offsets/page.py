"""One HTML file to click through the offsets of some images. It needs nothing else, and no network."""

from __future__ import annotations

import io
import json
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

BYTE_TOKENS = 127  # up to so many along each axis, an offset that no longer fits a byte points outside anyway


def page_entry(name: str, picture: Image.Image, offsets: Mapping[str, Tensor]) -> dict[str, Any]:
    """One image of a page: its pixels, and every token's offsets ``[H, W, 2G]`` by layer, rounded to whole tokens."""
    png = io.BytesIO()
    picture.save(png, format="png")
    found = []
    for layer, offset in offsets.items():
        H, W, channels = offset.shape
        dtype = torch.int8 if max(H, W) <= BYTE_TOKENS else torch.int16
        limit = torch.iinfo(dtype).max
        data = offset.round().clamp(-limit, limit).to(dtype).numpy()
        little_endian = data.astype(data.dtype.newbyteorder("<")).tobytes()
        found.append(
            dict(name=layer, rows=H, columns=W, groups=channels // 2, bytes=dtype.itemsize, data=b64encode(little_endian).decode())
        )
    source = "data:image/png;base64," + b64encode(png.getvalue()).decode()
    return dict(name=name, width=picture.width, height=picture.height, source=source, layers=found)


def write_page(path: str | os.PathLike[str], title: str, entries: Sequence[Mapping[str, Any]]) -> int:
    """Write the page of ``page_entry``'s images, and return its size in bytes.

    Raises:
        ValueError: there are no images.
    """
    if not entries:
        raise ValueError("a page needs at least one image")
    data = json.dumps(entries, separators=(",", ":")).replace("<", "\\u003c")  # nothing in it may end the script
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    page = template.replace("{{title}}", escape(title)).replace("{{data}}", data)
    return Path(path).write_bytes(page.encode())
