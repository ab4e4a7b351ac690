"""What is drawn is computed first, then drawn."""
