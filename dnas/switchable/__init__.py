"""One net of shared weights that runs at any of several assignments, and its training."""
