"""Pictures for people of what a network has found on an image: for the training programs and for ``python -m atmnet predict`` alike."""
