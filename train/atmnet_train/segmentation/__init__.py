"""Semantic segmentation on data in ADE20K's layout: the parts of train/ade20k.py."""
