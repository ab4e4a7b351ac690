"""Weights of which many are zero: how a layer's entry in an assignment tells them, and the formats of their codes."""
