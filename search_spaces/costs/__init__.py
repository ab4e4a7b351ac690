"""What a choice costs: the table, budgets, and what pruned, shared and specially stored layers take."""
