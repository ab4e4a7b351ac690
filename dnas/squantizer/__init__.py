"""SQuantizer: weights that are sparse and low-bit at once (arXiv 1812.08301); the whole of it but its scheme."""
