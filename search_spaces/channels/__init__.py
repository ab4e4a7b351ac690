"""Which filters go together, read by following channels through the network; removing them."""
