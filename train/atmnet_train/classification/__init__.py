"""Classification of images: parts of train/imagenet.py."""
