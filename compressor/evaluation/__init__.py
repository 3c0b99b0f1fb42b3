"""From weights to scores: forward passes of many trials, the values per sequence, and their intervals."""
