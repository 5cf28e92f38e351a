"""Words beside pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Entry = tuple[str, Colour | None]  # a text, and the colour that it explains, if any


def text_size(width: int, height: int) -> int:
    """Height of letters that can be read on a picture when all of it is seen."""
    return max(11, round(max(width, height) / 55))


def font_file(size: int) -> io.BytesIO:
    """Pillow's own font as torchvision takes one."""
    font: Any = ImageFont.load_default(size)
    return io.BytesIO(font.font_bytes)


def in_a_line(text: str) -> str:
    """A name as it can be drawn: without line breaks, and without what is no character."""
    return " ".join(text.encode(errors="replace").decode().split())


def in_percent(share: float) -> str:
    return "under 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def with_legend(image: Image.Image, entries: Sequence[Entry]) -> Image.Image:
    """The image over its legend, on white."""
    if not entries:
        return image
    size = text_size(*image.size)
    font, pad, box = ImageFont.load_default(size), size // 2, size
    texts = [in_a_line(text) for text, _ in entries]
    widths = [round(font.getlength(text)) + (box + pad if colour else 0) for text, (_, colour) in zip(texts, entries, strict=True)]
    width = max(image.width, max(widths) + 2 * pad)
    places, x, y = [], pad, pad
    for wide in widths:
        if x + wide + pad > width and x > pad:
            x, y = pad, y + size + pad
        places.append((x, y))
        x += wide + 2 * pad
    page = Image.new("RGB", (width, image.height + y + size + 2 * pad), "white")
    page.paste(image, (0, 0))
    draw = ImageDraw.Draw(page)
    for (x, y), text, (_, colour) in zip(places, texts, entries, strict=True):
        top = image.height + y
        if colour:
            draw.rectangle((x, top, x + box, top + box), fill=colour, outline="black")
            x += box + pad
        draw.text((x, top), text, fill="black", font=font)
    return page
