"""Per-layer pruning ratios by Bayesian optimization: the room is reserved, its work begins with the next issue."""
