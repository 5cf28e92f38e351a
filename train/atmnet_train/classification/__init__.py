"""What train/imagenet.py alone needs."""
