"""The schedule `evolution`: evolutionary search as in EvoPress."""
