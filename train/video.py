"""Train an ATMNet of videos on Kinetics, UCF101 or any labelled videos: `python train/video.py --help`."""

from atmnet_train.common.errors import run_program
from atmnet_train.video import main

if __name__ == "__main__":
    run_program(main)
