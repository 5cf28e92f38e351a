"""Semantic segmentation on data in ADE20K's layout: what train/ade20k.py is made of."""
