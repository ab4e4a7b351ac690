"""Reports, verdicts, and assignments in other formats."""
