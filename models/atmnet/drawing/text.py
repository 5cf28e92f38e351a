"""Words beside pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Entry = tuple[str, Colour | None]  # a text, and the colour that it explains, if any
COLUMN = 16  # heights of letters that a place on a strip is wide, or more
PLACES = 6  # on a strip, or as many more as fill its last line


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


def with_strip(image: Image.Image, entries: Sequence[Entry]) -> Image.Image:
    """The image over its first entries, on white, each in a place of its own: the page's size depends on the image's alone, and texts
    that are too long lose the end of their name."""
    size = text_size(*image.size)
    font, pad, box = ImageFont.load_default(size), size // 2, size
    columns = max(1, image.width // (COLUMN * size))
    column, lines = image.width // columns, -(-PLACES // columns)
    page = Image.new("RGB", (image.width, image.height + lines * (size + pad) + pad), "white")
    page.paste(image, (0, 0))
    draw = ImageDraw.Draw(page)
    for place, (text, colour) in enumerate(entries[: lines * columns]):
        x, y = place % columns * column + pad, image.height + pad + place // columns * (size + pad)
        room = column - pad
        if colour:
            draw.rectangle((x, y, x + box, y + box), fill=colour, outline="black")
            x, room = x + box + pad, room - box - pad
        draw.text((x, y), shortened(in_a_line(text), room, font), fill="black", font=font)
    return page


def shortened(text: str, room: int, font: Any) -> str:
    """A text such as ``name: 12.3 %``, with so much of the name as there is room for."""
    name, colon, value = text.rpartition(": ")
    end = colon + value
    if font.getlength(text) <= room:
        return text
    while name and font.getlength(f"{name}…{end}") > room:
        name = name[:-1]
    return f"{name}…{end}"
