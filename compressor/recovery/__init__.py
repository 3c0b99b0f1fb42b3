"""Recovery: training of the compressed model between rounds, so that it says again what the base says."""
