"""From treatments to weights: compressors are applied, calibrated and their amounts counted."""
