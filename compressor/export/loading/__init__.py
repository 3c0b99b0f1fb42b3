"""Loads an exported model with its integers packed in memory."""
