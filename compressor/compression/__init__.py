"""Treatments -> weights: applies compressors, gathers their calibration data and counts amounts."""
