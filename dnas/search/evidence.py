"""How many assignments it takes to tell how well a supernet ranks them; known without torch."""

LEAST_ASSIGNMENTS = 5
"""Of fewer Kendall's τ has no standard error."""
