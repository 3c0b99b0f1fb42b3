"""Texts, prefixes, and the reference: the base model's continuation and distribution after each prefix."""
