"""Runs in a browser while they go on: a small server that only reads."""
