"""For tests of schedules: small problems and the dry run."""

from collections.abc import Sequence

from compressor.contracts import Better, Component, Offer, Problem
from compressor.search.dry_run import DryRun, flat_score

__all__ = ["COMPONENTS", "OFFERS", "DryRun", "flat_score", "make_problem"]

COMPONENTS = (
    Component("model.layers.0.self_attn.q_proj", "query", 0, (8, 8), 16),
    Component("model.layers.0.self_attn.k_proj", "key", 0, (4, 8), 16),
    Component("model.layers.0.mlp.down_proj", "down", 0, (8, 20), 16),
    Component("model.layers.1.self_attn.q_proj", "query", 1, (8, 8), 16),
    Component("model.layers.1.self_attn.k_proj", "key", 1, (4, 8), 16),
    Component("model.layers.1.mlp.down_proj", "down", 1, (8, 20), 16),
)
OFFERS = {"prune": Offer(by_row=True), "round": Offer(levels=(0.5, 0.625, 0.75))}


def make_problem(compressors: Sequence[str], better: dict[str, Better], seed: int = 0) -> Problem:
    """Six small components. The compressor `prune` offers every amount, also by row; `round` offers three levels."""
    offers = {name: {component.name: OFFERS[name] for component in COMPONENTS} for name in compressors}
    lower = frozenset(name for name, which in better.items() if which is Better.LOWER)
    return Problem(COMPONENTS, offers, better, tokens=32, seed=seed, estimable=lower, prefixes=8)
