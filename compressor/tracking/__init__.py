"""Logs runs: Weights & Biases, or nothing."""
