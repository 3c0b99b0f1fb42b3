"""Logging of runs to Weights & Biases, or nowhere."""
