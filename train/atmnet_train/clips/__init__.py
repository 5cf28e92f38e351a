"""Classification of videos: parts of train/video.py."""
