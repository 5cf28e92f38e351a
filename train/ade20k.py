"""Train semantic segmentation on ADE20K, or on data in its layout: `python train/ade20k.py --help`."""

from atmnet_train.ade20k import main
from atmnet_train.common.errors import run_program

if __name__ == "__main__":
    run_program(main)
