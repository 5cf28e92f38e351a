"""Weights of a model: the published files, ours in safetensors, the Hugging Face Hub; one reader and one check that they fit."""
