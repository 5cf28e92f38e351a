"""Object detection on data in COCO's layout: what train/coco.py is made of."""
