"""The layers, shapes and couplings of an unedited network."""
