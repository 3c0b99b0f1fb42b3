"""Loads an exported model and keeps its integers packed in memory."""
