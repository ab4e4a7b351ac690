"""What a choice costs: the table, budgets, and what pruned, sparse and shared nets take."""
