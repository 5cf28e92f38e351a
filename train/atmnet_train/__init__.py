"""Training programs for the ATMNets: ImageNet (or any labelled images), ADE20K, COCO, and a demo."""
