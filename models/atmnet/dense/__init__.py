"""Networks for dense prediction: backbone, necks, segmenters, detectors."""
