"""What the training programs share: one idea per file."""
