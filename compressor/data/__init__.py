"""Texts and prefixes, and the reference: what the base model says after each prefix."""
