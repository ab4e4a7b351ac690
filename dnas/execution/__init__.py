"""Carrying tasks out: what a task is, in which order tasks run, and who runs them. Knows neither networks nor runs."""
