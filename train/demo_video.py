"""`make demo-video`: train a small ATMNet to tell where digits move, with and without mixing along time, in minutes on a laptop's CPU."""

from atmnet_train.demo_video import main

if __name__ == "__main__":
    main()
