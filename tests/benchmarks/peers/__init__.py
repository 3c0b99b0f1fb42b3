"""Allocators of others, each a script for an environment of its own: nothing of the project is imported here."""
