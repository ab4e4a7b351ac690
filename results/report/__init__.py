"""Runs as a page: what is shown of them, as plain values, and the page that is made of these."""
