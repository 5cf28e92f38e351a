"""`make demo`: train a small ATMNet on real handwritten digits, in minutes on a laptop's CPU, and look at what it learnt."""

from atmnet_train.demo import main

if __name__ == "__main__":
    main()
