"""Loads an exported model, keeps its integers packed in memory, and makes no product with matrices of zeros."""
