"""Looks of a model's offsets (the paper's figures 3, 5, 6 and 7): collecting them, pictures, histograms, and a page to click through.

    offsets = collect(model, images)  # by layer: [B, H, W, 2G]
    draw_panel("panel.png", picture, {name: offset[0] for name, offset in offsets.items()})

``python -m atmnet offsets`` does all of it for files.
"""

from .collecting import collect, layers, samples
from .draw import draw_histograms, draw_panel
from .histograms import Histograms
from .page import page_entry, write_page

__all__ = ["Histograms", "collect", "draw_histograms", "draw_panel", "layers", "page_entry", "samples", "write_page"]
