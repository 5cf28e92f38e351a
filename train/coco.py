"""Train an object detector on COCO, or on data in its layout: `python train/coco.py --help`."""

from atmnet_train.coco import main
from atmnet_train.common.errors import run_program

if __name__ == "__main__":
    run_program(main)
