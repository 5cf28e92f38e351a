"""Object detection on data in COCO's layout: the parts of train/coco.py."""
