"""What can be chosen, and what a choice costs: layers, assignments, spaces, costs, budgets and the small model zoo."""
