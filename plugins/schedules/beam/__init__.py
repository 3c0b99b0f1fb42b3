"""The schedule `beam`: beam search over sets of treated components."""
