"""Train an ATMNet, or any timm model, on ImageNet or any labelled images: `python train/imagenet.py --help`."""

from atmnet_train.common.errors import run_program
from atmnet_train.imagenet import main

if __name__ == "__main__":
    run_program(main)
