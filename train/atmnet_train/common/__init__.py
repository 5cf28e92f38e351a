"""Parts that the training programs share: one idea per file."""
