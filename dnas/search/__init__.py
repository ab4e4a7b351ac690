"""The supernet, how cost enters the loss, the search loop, training-free scores, what its state says."""
