"""The fixed levels of each component, ordered by stored bits from the most to the least."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compressor.contracts import Offer, Problem, Treatment

from ..targets import Span, Vector, make_span
from .mutations import Counts

Options = Mapping[str, Sequence[Treatment]]


def list_levels(problem: Problem) -> dict[str, list[Treatment]]:
    """All levels of all compressors for each component; empty if a compressor offers a range."""
    if any(offer.is_range for offers in problem.offers.values() for offer in offers.values()):
        return {}
    return {
        component.name: [
            Treatment(compressor, level)
            for compressor, offers in problem.offers.items()
            for level in sorted(offers[component.name].levels)
        ]
        for component in (problem.components if problem.offers else ())
    }


def span_options(problem: Problem, options: Options) -> Span:
    """The smallest and the largest amount of the options of each component."""
    amounts = [[treatment.amount for treatment in options[component.name]] for component in problem.components]
    return make_span(", ".join(problem.offers), problem, [(min(row), max(row)) for row in amounts])


@dataclass(frozen=True)
class Ladder:
    """The options of each component from the largest to the smallest, and their packed bits `[component, level]`.

    Shorter rows of `bits` are padded with their last value.
    """

    names: tuple[str, ...]
    options: tuple[tuple[Treatment, ...], ...]
    bits: Counts

    @property
    def tops(self) -> Counts:
        return np.array([len(row) - 1 for row in self.options], dtype=np.int64)

    def interpolate(self, amounts: Vector) -> int:
        """Bits of all components at `amounts` `[component]`, by linear interpolation between levels."""
        rows = zip(amounts, self.options, self.bits, strict=True)
        exact = sum(float(np.interp(a, [t.amount for t in row], bits[: len(row)])) for a, row, bits in rows)
        return int(exact * (1 + 1e-12) + Offer.TOLERANCE)

    def floor(self, current: Vector) -> Counts:
        """The first level of each component with an amount of at least `current` `[component]`."""
        rows = zip(current - Offer.TOLERANCE, self.options, strict=True)
        return np.array([sum(t.amount < amount for t in row) for amount, row in rows], dtype=np.int64)


def make_ladder(options: Options, sizes: Mapping[str, Sequence[int]]) -> Ladder:
    """Order the options by size. An option is left out if one of at least its size has a larger amount."""
    rows: list[list[tuple[int, Treatment]]] = []
    for name, choices in options.items():
        rows.append([])
        for bits, choice in sorted(zip(sizes[name], choices, strict=True), key=lambda pair: -pair[0]):
            if not rows[-1] or choice.amount >= rows[-1][-1][1].amount:
                rows[-1].append((bits, choice))
    width = max(map(len, rows))
    table = [[bits for bits, _ in row] + [row[-1][0]] * (width - len(row)) for row in rows]
    return Ladder(tuple(options), tuple(tuple(t for _, t in row) for row in rows), np.array(table, dtype=np.int64))
