"""Data sets, their splits and batches, and what is done to images on the way."""
