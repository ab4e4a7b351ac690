"""The integer program: the best cells within every budget."""
