"""What is said of components that no token came to, and whether more prefixes can help. Torch-free."""

from collections import Counter
from collections.abc import Collection, Sequence

from compressor.contracts import Component

ENOUGH = 20
"""Tokens that an expert would get from a router that shares them evenly. Without any of so many it is hardly used."""


def can_be_reached(components: Sequence[Component], names: Collection[str], tokens: int) -> bool:
    """Whether further tokens may come to some of the components `names`, to which none of so many `tokens` came."""
    alike = Counter((component.layer, component.kind) for component in components)
    return any(tokens < ENOUGH * alike[c.layer, c.kind] for c in components if c.name in names)


def describe_unreached(components: Sequence[Component], names: Collection[str], prefixes: int, tokens: int) -> str:
    """`2 of 9 components (a, b), which none of the 512 tokens of 8 prefixes reached; …` with what can be done.

    `tokens` are those that continue each of the `prefixes`.
    """
    listed = [component.name for component in components if component.name in names]
    if can_be_reached(components, names, prefixes * tokens):
        advice = "more prefixes (data.prefixes) may reach them"
    else:
        advice = "their router chooses them hardly ever, or never, so more prefixes will hardly help"
    return (
        f"{len(listed)} of {len(components)} components ({', '.join(listed[:3])}{' …' if len(listed) > 3 else ''}), "
        f"which none of the {prefixes * tokens:,} tokens after {prefixes} prefixes reached; {advice}"
    )
