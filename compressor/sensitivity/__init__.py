"""Estimated costs of treatments: gradients, the margin law, and a cache of estimates on disk."""
