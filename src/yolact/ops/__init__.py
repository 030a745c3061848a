"""Arithmetic on boxes and masks that the loss, detection and post-processing share."""
